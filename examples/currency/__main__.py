"""`python -m examples.currency`: the web service, a worker and the schedule in one process, on the embedded broker."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import uvicorn

from carteiro.telemetry.logs import configure
from examples.currency.api import service


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    configure("info")
    api = service(workers=not options.web_only)
    uvicorn.run(api, host=options.host, port=options.port, access_log=False, timeout_graceful_shutdown=3)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m examples.currency", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8002)
    parser.add_argument("--web-only", action="store_true", help="others work, and fire the schedule")
    return parser


if __name__ == "__main__":
    sys.exit(main())
