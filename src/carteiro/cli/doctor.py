"""`carteiro doctor`: can the broker be reached, is it durable, what can it do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from carteiro.cli.exits import Exit
from carteiro.cli.output import heading, show_json, show_table
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption
from carteiro.cli.target import Target
from carteiro.cli.worker import without_password
from carteiro.errors import BrokerError, BrokerUnavailable
from carteiro.ports.broker import Backend, Check
from carteiro.ports.features import Capability

_WORDS: Final = {"native": "yes", "emulated": "emulated", "unsupported": "no"}


def doctor(app: AppOption = None, broker: BrokerOption = None, json: JsonOption = False) -> int:
    """Check the broker: reachable, durable, and what it can do.

    Exits with 1 if there is an error; a warning is none.
    """
    resolved = Target(app, broker).resolve()
    backend = resolved.open_backend()
    url = without_password(resolved.url)
    checks = asyncio.run(_examine(backend))
    features = backend.broker.features
    support = {capability: features[capability] for capability in Capability}
    if json:
        show_json(
            {
                "broker": url,
                "backend": features.backend,
                "checks": checks,
                "features": {capability.value: answer for capability, answer in support.items()},
            }
        )
    else:
        print(heading(f"{url} ({features.backend})"))
        show_table(("check", "status", "detail"), [(check.name, check.status, check.detail) for check in checks])
        rows = [(one.value, _WORDS[answer.level], answer.how) for one, answer in support.items()]
        print()
        show_table(("feature", "supported", "how"), rows)
    return Exit.FAILED if any(check.status == "error" for check in checks) else Exit.DONE


async def _examine(backend: Backend) -> Sequence[Check]:
    try:
        await backend.broker.connect()
    except BrokerError as error:
        name = "reachable" if isinstance(error, BrokerUnavailable) else "usable"
        return [Check(name, "error", str(error))]
    try:
        return await backend.doctor()
    finally:
        await backend.broker.close()
