"""The work of one process: import the app, run it until a signal, and say how that ended.

The first SIGTERM or SIGINT stops it gracefully: nothing more is fetched, what runs gets its grace, what is unfinished
goes back to the broker uncounted. The second one skips the grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from carteiro.app import Carteiro
from carteiro.cli.exits import Exit
from carteiro.cli.options import HURRY, SHOWN, Ready, Report, RunOptions, Worn
from carteiro.cli.target import load
from carteiro.engine.printing import print_whole_lines
from carteiro.errors import CarteiroError, UnsupportedFeature
from carteiro.message import Subscription
from carteiro.ports.features import Capability
from carteiro.scheduling import fires
from carteiro.telemetry.logs import configure

log = logging.getLogger("carteiro.run")

LOOK = 1.0
"""Seconds between two looks at the limits of a worker that is to be recycled."""


_PASSWORD_OPTION: Final = re.compile(r"([?&]\w*password=)[^&]*")

SWITCH_INTERVAL: Final = 0.0001
"""Seconds after which a thread that wants the interpreter gets it. A backend's thread asks for it after each call into
its library, and with Python's own 5 ms the event loop and that thread take turns instead of working side by side:
docs/decisions/0004 has the figures."""


def work(options: RunOptions, report: Callable[[Report], None], parent: socket.socket | None = None) -> int:
    """Run the app until it is stopped; returns the exit code, raises what keeps it from running.

    `parent`, if there is one, is a socket on which it says HURRY, or that is at its end when it is gone: then the
    worker stops, too.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    print_whole_lines()
    app = load(options.app)
    configure(options.log_level, "json" if options.log_json else None)
    if sys.stdout.isatty() and not options.quiet and not options.json:
        from carteiro.telemetry.lines import MessageLines

        app.middleware(MessageLines(sys.stdout, app.clock))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Shift(app, options, report, parent).run())


class _Shift:
    """One app at work, from its connection to its end."""

    def __init__(
        self, app: Carteiro, options: RunOptions, report: Callable[[Report], None], parent: socket.socket | None
    ) -> None:
        self._app = app
        self._options = options
        self._report = report
        self._parent = parent
        self._signals: list[int] = []
        self._working: asyncio.Task[None]

    async def run(self) -> int:
        self._working = asyncio.create_task(self._work(), name="carteiro run")
        self._listen()
        aside = asyncio.create_task(self._look_after(), name="carteiro run: reports")
        try:
            await self._working
        except asyncio.CancelledError:
            if not self._signals:
                raise
        finally:
            aside.cancel()
        return 128 + self._signals[-1] if len(self._signals) > 1 else Exit.DONE

    async def _work(self) -> None:
        several = "carteiro scheduler" if self._options.schedules == "only" else ""
        if self._options.workers > 1:
            several = f"--workers {self._options.workers}"
        async with self._app as app:
            for connection in app.connections.values() if several else ():
                features = connection.broker.features
                if not features[Capability.MULTIPROCESS]:
                    raise UnsupportedFeature(
                        f"{several} needs several processes, which the {features.backend} broker does not have: "
                        f"{features[Capability.MULTIPROCESS].how}"
                    )
            await app.run(
                only=self._options.only, concurrency=self._options.concurrency, schedules=self._options.schedules
            )

    async def _look_after(self) -> None:
        """Report when it consumes, and when it has reached a limit."""
        await self._app.ready()
        lanes = [lane for worker in self._app.workers.values() for lane in worker.lanes]
        self._report(Ready(self._app.name, where(self._app.urls), named(lanes), await self._fires()))
        if self._options.max_messages is None and self._options.max_memory is None:
            return
        while (reason := self._worn()) is None:
            await self._app.clock.sleep(LOOK)
        self._report(Worn(reason))

    async def _fires(self) -> list[tuple[str, float, str | None]] | None:
        """The schedules that are due first; one more than are shown."""
        if not fires(self._app, self._options.schedules):
            return None
        try:
            soonest = await self._app.schedules.soonest(SHOWN + 1)
        except CarteiroError:  # it is ready all the same, or stopping already
            return []
        return [(one.name, one.next.timestamp(), one.tz) for one in soonest if one.next is not None]

    def _worn(self) -> str | None:
        limits = self._options
        handled = sum(worker.handled for worker in self._app.workers.values())
        if limits.max_messages is not None and handled >= limits.max_messages:
            return f"it has handled {handled} messages"
        if limits.max_memory is not None and (memory := resident()) >= limits.max_memory:
            return f"it takes {memory / 1_048_576:.0f} MB of memory"
        return None

    # -- signals -----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, signal.SIGTERM)
        if self._parent is None:
            loop.add_signal_handler(signal.SIGINT, self._stop, signal.SIGINT)
        else:  # ctrl-C reaches every process of a terminal: that of a child is its parent's matter
            loop.add_reader(self._parent, self._hear, self._parent)

    def _stop(self, number: int) -> None:
        self._signals.append(number)
        if self._parent is None:
            log.info(
                "stopping: what runs may end; another signal stops it at once"
                if len(self._signals) == 1
                else "stopping at once"
            )
        if not self._app.workers:
            self._working.cancel()
        else:
            self._app.stop()

    def _hear(self, parent: socket.socket) -> None:
        try:
            said = parent.recv(len(HURRY))
        except ConnectionError:
            said = b""
        if not said:
            asyncio.get_running_loop().remove_reader(parent)
            log.warning("its supervisor is gone: this worker stops, too")
        for _ in range(2 if said == HURRY else 1):
            self._stop(signal.SIGTERM)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one."""
    with contextlib.suppress(ImportError):
        import uvloop

        factory: Any = uvloop.new_event_loop
        return factory  # type: ignore[no-any-return]
    return None


def resident() -> int:
    """The memory of this process in bytes; where the system does not tell, the most that it ever had."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    url = _PASSWORD_OPTION.sub(r"\1***", url)
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def where(urls: Mapping[str, str]) -> str:
    """The brokers as they may be shown; by name, where there are several."""
    if len(urls) == 1:
        return without_password(*urls.values())
    return ", ".join(f"{name} {without_password(url)}" for name, url in urls.items())


def named(subscriptions: list[Subscription]) -> list[str]:
    """Their names, without what tells one process's own from another's."""
    return sorted(f"{one.topic} [{'broadcast' if one.ephemeral else one.group}]" for one in subscriptions)
