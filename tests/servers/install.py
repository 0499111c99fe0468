"""`python -m tests.servers.install`: bring onto this machine what the tests need, as far as that can be done.

Takes each offer that is not taken yet. What cannot be had is said in a line, and the exit code is 1: nothing fails for
that, but it is tried again next time.
"""

from __future__ import annotations

import sys

from tests.servers.registry import SYSTEMS
from tests.servers.system import NotInstalled, Offer


def main() -> int:
    for system in SYSTEMS.values():
        for offer in system.offers:
            if not offer.is_here():
                _take(offer)
    missing = [system for system in SYSTEMS.values() if not system.is_here()]
    for system in missing:
        print(f"{system.missing}. The tests that need it are skipped.", file=sys.stderr)
    return 1 if missing else 0


def _take(offer: Offer) -> None:
    try:
        offer.install()
    except NotInstalled as trouble:
        print(f"not installed for the tests: {offer.title}: {trouble}", file=sys.stderr)
    else:
        print(f"installed for the tests: {offer.title}")


if __name__ == "__main__":
    sys.exit(main())
