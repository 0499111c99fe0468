"""`python -m examples.shop`: the web API and all who work for it, in one process, on the embedded broker."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

import uvicorn

from carteiro.telemetry.lines import MessageLines
from carteiro.telemetry.logs import configure
from examples.shop.api import service
from examples.shop.app import app


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    configure("error" if options.quiet else "warning")
    if sys.stdout.isatty() and not options.quiet:
        app.middleware(MessageLines(sys.stdout, app.clock))
    groups = sorted({subscription.group for subscription in app.declared()})
    if unknown := set(options.without) - set(groups):
        print(f"the shop has no group `{min(unknown)}`: it has {', '.join(groups)}", file=sys.stderr)
        return 2
    try:
        listening = _listen(options.host, options.port)
    except OSError as error:
        print(f"cannot listen on {options.host}: {error}", file=sys.stderr)
        return 1
    api = service(only=[group for group in groups if group not in options.without])
    config = uvicorn.Config(api, log_config=None, log_level="warning", timeout_graceful_shutdown=3)
    try:
        Server(config, listening).run()
    except KeyboardInterrupt:  # uvicorn passes it on when all is closed
        print("the shop is closed; what was under way goes on when it opens again", flush=True)
    return 0


class Server(uvicorn.Server):
    """Says where it is once it can be used."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([self._listening])
        host, port = self._listening.getsockname()[:2]
        print(f"the shop is open at http://{host}:{port}", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    """A socket on `port` or, when that is taken, on a free one."""
    try:
        return _bound(host, port)
    except OSError:
        if not port:
            raise
    free = _bound(host, 0)
    print(f"port {port} is taken, {free.getsockname()[1]} is free", flush=True)
    return free


def _bound(host: str, port: int) -> socket.socket:
    opened = socket.socket()
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except OSError:
        opened.close()
        raise
    return opened


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m examples.shop", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default 8000)")
    parser.add_argument("--without", action="append", default=[], metavar="GROUP", help="this group is down")
    parser.add_argument("--quiet", action="store_true", help="print no line a message")
    return parser


if __name__ == "__main__":
    sys.exit(main())
