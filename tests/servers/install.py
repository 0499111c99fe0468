"""`python -m tests.servers.install`: bring onto this machine what the tests need, as far as that can be done.

Takes each offer that is not taken yet. A system that is still missing then is said in a line, and nothing fails for it.
"""

from __future__ import annotations

import sys

from tests.servers.registry import SYSTEMS
from tests.servers.system import NotInstalled, Offer


def main() -> None:
    troubles = {
        name: [trouble for offer in system.offers if not offer.is_here() and (trouble := _take(offer))]
        for name, system in SYSTEMS.items()
    }
    for name, system in SYSTEMS.items():
        if not system.is_here():
            tried = f" (tried: {'; '.join(troubles[name])})" if troubles[name] else ""
            print(f"{system.missing}. The tests that need it are skipped.{tried}", file=sys.stderr)


def _take(offer: Offer) -> str:
    """What was in the way, or ''."""
    try:
        offer.install()
    except NotInstalled as trouble:
        return f"{offer.title}: {trouble}"
    print(f"installed for the tests: {offer.title}")
    return ""


if __name__ == "__main__":
    main()
