"""The app: its options, and its life from connecting to stopping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from carteiro.assembling import Assembling, Settings
from carteiro.brokers import DEFAULT, Brokers
from carteiro.connection import Connections
from carteiro.durations import Duration, seconds
from carteiro.engine.crew import Crew
from carteiro.engine.routes import ConsumeMiddleware, PublishMiddleware
from carteiro.engine.worker import Worker
from carteiro.errors import ConfigurationError
from carteiro.handlers.codecs import Codec
from carteiro.life import Life
from carteiro.policies.breaker import DEFAULT_BREAKER, Breaker
from carteiro.policies.retry import Retry
from carteiro.ports.broker import Backend
from carteiro.ports.clock import SYSTEM_CLOCK, Clock
from carteiro.queues import closed
from carteiro.scheduling import Fires, fires, firing
from carteiro.tasks.attempt import Kept

log = logging.getLogger("carteiro.app")

PM = TypeVar("PM", bound=PublishMiddleware)
CM = TypeVar("CM", bound=ConsumeMiddleware)


class Carteiro(Assembling):
    """One service: its handlers, its brokers, its workers.

    `name` is the default group of its subscribers. `broker` is a URL; by default the environment variable
    CARTEIRO_BROKER, or else the embedded broker in `./carteiro.db`. `brokers` is in its place where there are several:
    URLs by name, `"default"` among them. `retry` and `lease` (the time after which the messages of a worker that says
    nothing go to others) hold for subscribers that have none of their own. `dedupe` is the window in which a message id
    that the publisher chose is taken once. `grace` is how long handlers may go on when the app stops; `publish_timeout`
    how long a publish waits for a broker that is away, which the `breaker` cuts short (None leaves it out); `outbox`
    keeps what is published meanwhile in a file, by default `./NAME-outbox.db`, and forwards it when the broker is back.
    Times are seconds, timedeltas or text such as `"30s"`. `store` is the URL of what keeps state for all handlers, in
    place of the brokers' own stores; a broker that has none uses that of another of the app's, or else the embedded
    one. `codec` is how bodies are written: `"json"` or `"msgpack"`; both are read. `result_ttl` is how long the results
    of tasks are kept, `result_size` how many bytes one may have. `lifespan`, an async context manager
    that takes the app, holds what the handlers need while they run, such as a pool of connections.
    """

    def __init__(
        self,
        name: str,
        broker: str | Backend | None = None,
        *,
        brokers: Mapping[str, str | Backend] | None = None,
        store: str | None = None,
        retry: Retry | None = None,
        lease: Duration = 30.0,
        dedupe: Duration = "2m",
        grace: Duration = 30.0,
        publish_timeout: Duration = 30.0,
        breaker: Breaker | None = DEFAULT_BREAKER,
        outbox: bool | str | os.PathLike[str] = False,
        codec: Codec = "json",
        result_ttl: Duration = "1d",
        result_size: int = 1_048_576,
        middleware: Sequence[ConsumeMiddleware] = (),
        publish_middleware: Sequence[PublishMiddleware] = (),
        lifespan: Callable[[Carteiro], AbstractAsyncContextManager[object]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not name or any(letter.isspace() for letter in name):
            raise ConfigurationError(f"an app needs a name without spaces, not {name!r}: it is its default group")
        if codec not in ("json", "msgpack"):
            raise ConfigurationError(f'codec="{codec}": it is "json" or "msgpack"')
        kept = Kept(seconds(result_ttl), result_size)
        if seconds(lease) <= 0:
            raise ConfigurationError("lease= must be over 0 seconds")
        if kept.ttl <= 0:
            raise ConfigurationError("result_ttl= must be over 0 seconds: @app.task(result=False) keeps no result")
        settings = Settings(
            store=store,
            retry=retry or Retry(),
            lease=seconds(lease),
            dedupe=seconds(dedupe),
            publish_timeout=seconds(publish_timeout),
            breaker=breaker,
            outbox=_outbox_path(name, outbox),
            codec=codec,
            results=kept,
            consume_middleware=list(middleware),
            publish_middleware=list(publish_middleware),
        )
        super().__init__(name, Brokers.of(name, broker, brokers), settings, clock)
        self._grace = seconds(grace)
        self._resources = lifespan or (lambda app: contextlib.nullcontext())
        self.life = Life(name)
        """Where its work stands."""
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[Connections] | None = None
        self._crew: Crew | None = None
        self._stops = 0
        """How often `stop` was called: each run goes by those since it was asked for."""
        self._awaiting_ready: list[asyncio.Future[None]] = []

    @classmethod
    def from_config(cls, path: str | os.PathLike[str], name: str | None = None, **options: Any) -> Self:
        """The app whose queues and brokers a file such as `queues.yaml` names; needs `carteiro[config]`.

        `name` is by default the file's `app:`, or else the file's own name without its suffix. `options` are those of
        the class. What a decorator leaves open the file says. Raises ConfigurationError that lists all that is wrong
        with the file, each with its line and the way out.
        """
        from carteiro.config.loading import load

        queues = load(path)
        app = cls(
            name or queues.app or Path(path).stem, **{"brokers": queues.brokers, "store": queues.store, **options}
        )
        app._queues, app._closed = queues, closed(queues)
        for queue in queues.queues.values():
            if queue.broker != DEFAULT:
                app.topic(queue.name, broker=queue.broker)
        return app

    # -- middleware ------------------------------------------------------------------------------------------------

    def middleware(self, function: CM) -> CM:
        """Wrap the handling of each message: `async (message, call_next)`. The first one installed is the outermost."""
        self._settings.consume_middleware.append(function)
        return function

    def publish_middleware(self, function: PM) -> PM:
        """Wrap the publishing of each message, also of what handlers emit: `async (outgoing, call_next)`."""
        self._settings.publish_middleware.append(function)
        return function

    # -- its life --------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Carteiro:
        """Connect for publishing and requests; the app's groups are declared. Handles nothing: see `run`."""
        loop = asyncio.get_running_loop()
        if self._users and self._loop is not loop:
            raise ConfigurationError(f"app `{self.name}` is in use on another event loop of this process")
        self._loop = loop
        self._users += 1
        try:
            if self._opening is None:
                self._opening = loop.create_task(self._connect())
            self._connections = await asyncio.shield(self._opening)
        except BaseException:
            await self.__aexit__()
            raise
        self._sync.use(self._connections, loop)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._users -= 1
        if self._users:
            return
        opening, self._opening, self._connections = self._opening, None, None
        self._sync.use(None, None)
        if opening is not None:
            await _despite_cancels(_closed(opening))

    def run(
        self, *, only: Sequence[str] = (), concurrency: int | None = None, schedules: Fires | None = None
    ) -> Coroutine[Any, Any, None]:
        """Handle messages and fire schedules until a cancel or a call of `stop`; a second cancel skips the grace.

        `only` limits it to these groups, topics or task queues; `concurrency` is for subscribers that have none of
        their own. `schedules`: False fires none and runs no function of `@scheduled`, `"only"` does nothing else; by
        default they are fired by a process that is not limited to something else.
        """
        if schedules is None:
            schedules = not only
        # A stop from here on is meant for it, though it has not begun.
        return self._run(only, concurrency, schedules, self._stops)

    async def _run(self, only: Sequence[str], concurrency: int | None, schedules: Fires, stops_before: int) -> None:
        with self.life.working():
            async with self, _always_closed(self._resources(self)):
                builder, crew = await self._build(only, concurrency, schedules)
                try:
                    await builder.start()
                    growing = self._task_work.growing(only, partial(self._take_up, builder, crew))
                    async with (
                        contextlib.nullcontext() if schedules == "only" else growing,
                        firing(self, shared=self._settings.store is not None)
                        if fires(self, schedules)
                        else contextlib.nullcontext(),
                    ):
                        await self._work(crew, stops_before)
                finally:
                    await builder.close()

    async def ready(self) -> None:
        """Return once `run` consumes."""
        if self._crew is None:
            waiter = asyncio.get_running_loop().create_future()
            self._awaiting_ready.append(waiter)
            await waiter

    def stop(self) -> None:
        """Have `run` return, once it has started: what runs gets its grace. A second call skips the grace.

        It is for the `run` that was called before, though its task may not have begun, and never for a later one.
        """
        self._stops += 1
        if self._crew is not None:
            self._crew.request_stop()

    @contextlib.asynccontextmanager
    async def lifespan(
        self, api: object = None, *, workers: bool = True, only: Sequence[str] = (), schedules: Fires | None = None
    ) -> AsyncIterator[None]:
        """For ASGI frameworks: `FastAPI(lifespan=app.lifespan)`. `workers=False` only publishes; `only` and `schedules`
        are `run`'s.
        """
        async with self:
            if not workers:
                yield
                return
            running = asyncio.create_task(self.run(only=only, schedules=schedules), name="carteiro worker")
            ready = asyncio.create_task(self.ready())
            try:
                await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                running.cancel()
                await asyncio.wait([running])
                raise
            finally:
                ready.cancel()
            if running.done():
                running.result()
            running.add_done_callback(_tell_of_death)
            try:
                yield
            finally:
                self.stop()
                await running

    @property
    def worker(self) -> Worker | None:
        """The running worker of the default broker, if there is one."""
        return self.workers.get(DEFAULT)

    @property
    def workers(self) -> Mapping[str, Worker]:
        """The running workers, by the names of the brokers that they consume from; none while nothing runs."""
        return {} if self._crew is None else self._crew.workers

    async def _work(self, crew: Crew, stops_before: int) -> None:
        self._crew = crew
        crew.start()
        if self._stops > stops_before:
            crew.request_stop()
        for waiter in self._awaiting_ready:
            if not waiter.done():
                waiter.set_result(None)
        self._awaiting_ready.clear()
        try:
            with self.life.consuming(crew):
                await crew.run_until_stopped()
        finally:
            try:
                await _despite_cancels(crew.stop(self._grace), crew.hurry)
            finally:
                self._crew = None


@contextlib.asynccontextmanager
async def _always_closed(resources: AbstractAsyncContextManager[object]) -> AsyncIterator[None]:
    """Leave `resources` as after a success, however the worker ended: a cancel is how most of them end."""
    await resources.__aenter__()
    try:
        yield
    finally:
        await resources.__aexit__(None, None, None)


def _outbox_path(name: str, outbox: bool | str | os.PathLike[str]) -> str | None:
    if outbox is True:
        return f"{quote(name, safe='')}-outbox.db"
    return os.fspath(outbox) if outbox else None


def _tell_of_death(worker: asyncio.Task[None]) -> None:
    """A service whose worker ended by itself goes on, and its log must say so."""
    if not worker.cancelled() and worker.exception() is not None:
        log.critical("the worker has died, and this process handles no messages any more", exc_info=worker.exception())


async def _closed(opening: asyncio.Task[Connections]) -> None:
    """Close what this opens, if it can be opened."""
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()


async def _despite_cancels(work: Awaitable[None], hurry: Callable[[], None] = lambda: None) -> None:
    """Await `work` to its end; each cancel meanwhile calls `hurry` and is raised when the work is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
            hurry()
    task.result()
    if cancelled is not None:
        raise cancelled
