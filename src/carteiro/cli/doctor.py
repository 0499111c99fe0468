"""`carteiro doctor`: can the broker be reached, is it durable, what can it do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from carteiro.app import Carteiro
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
    """Check each broker: reachable, durable, and what it can do.

    Exits with 1 if there is an error; a warning is none.
    """
    target = Target(app, broker)
    resolved = target.resolve()
    found = [_look(resolved, name) for name in target.chosen(resolved)]
    if json:
        show_json(found[0] if len(found) == 1 else found)
    else:
        for number, report in enumerate(found):
            if number:
                print()
            _show(report)
    failed = any(check.status == "error" for report in found for check in report["checks"])
    return Exit.FAILED if failed else Exit.DONE


def _look(app: Carteiro, name: str) -> dict[str, Any]:
    backend = app.open_backend(name)
    features = backend.broker.features
    report = {
        "broker": without_password(app.urls[name]),
        "backend": features.backend,
        "checks": asyncio.run(_examine(backend)),
        "features": {capability.value: features[capability] for capability in Capability},
    }
    return report if len(app.urls) == 1 else {"name": name, **report}


def _show(report: dict[str, Any]) -> None:
    name = f"{report['name']}: " if "name" in report else ""
    print(heading(f"{name}{report['broker']} ({report['backend']})"))
    checks = [(check.name, check.status, check.detail) for check in report["checks"]]
    show_table(("check", "status", "detail"), checks)
    print()
    features = [(name, _WORDS[answer.level], answer.how) for name, answer in report["features"].items()]
    show_table(("feature", "supported", "how"), features)


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
