"""A worker for tests to kill, freeze, starve and stop: a real process with a real app.

    python -m tests.faults.worker URL OPTIONS

OPTIONS is the JSON of `Options`. The app has one subscriber, `work` in the group `shop`, which does what each message
says (`Task`) and then emits the message's id to `done`. It prints one JSON object a line, `{"event": …}`, and takes
commands as lines on its standard input: `go` lets a waiting handler end, `clock SECONDS` moves its clock to that
distance from the machine's, `status` asks for the worker's trouble.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from carteiro import Body, Carteiro, CarteiroError, Message, Outgoing, Retry, constant
from carteiro.message import Action, Delivery, Outcome, Subscription
from carteiro.ports.broker import Backend
from carteiro.ports.clock import SystemClock
from carteiro.ports.registry import open_backend
from tests.faults.wal import mark

Step = Literal["publishing", "claimed", "decoded", "handled", "committing", "settled"]
"""Where a worker kills itself: it is about to publish; the fetch returned; the handler begins; it has ended; all of the
settle's statements are executed and COMMIT is next (SQLite), half of its request is sent (Redis), or what it emits is
out and half of its ack is sent (RabbitMQ); it returned and nobody was told."""


class Options(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How the worker runs. Times are in seconds."""

    module: ClassVar[str] = "tests.faults.worker"
    """The program that takes these."""

    lease: float = 1.0
    attempts: int = 5
    backoff: float = 0.0
    concurrency: int = 50
    grace: float = 30.0
    crash: Step | None = None
    quiet: bool = False
    """Say nothing of each message: for tests with many."""
    clock: float = 0.0
    """How far its time of day is from the machine's, at first."""
    publish: bool = False
    """Publish to `work`, 20 messages at a time, until SIGTERM, in place of handling any; tell what is acknowledged."""
    publish_timeout: float = 30.0
    user: int | None = None
    """The user to become, so that permissions mean something where the tests run as root."""
    file: str | None = None
    """The broker's file, if each acknowledgement is to tell how far its log was committed then."""


class Task(msgspec.Struct, omit_defaults=True):
    """What a message asks of its handler: to take `seconds`; then to fail in its first attempts, so many of them; then
    to wait for `go`, or to take the worker along."""

    do: Literal["", "wait", "kill", "exit"] = ""
    seconds: float = 0.0
    fails: int = 0
    padding: str = ""


class Failed(Exception):
    """What a handler raises that is asked to fail."""


def move_clock(offset: float) -> None:
    """From now on this process's time of day is so many seconds from the machine's."""
    SystemClock.time = lambda self: time.time() + offset  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Layer:
    """Passes every call through to `inner`, but for those that a subclass replaces."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Sabotaged(Layer):
    """A backend and its broker, whose consumers are in the worker's hand."""

    def __init__(self, inner: Any, worker: WorkerApp) -> None:
        super().__init__(inner)
        self._worker = worker

    @property
    def broker(self) -> Any:
        return Sabotaged(self._inner.broker, self._worker)

    def consume(self, subscriptions: Sequence[Subscription]) -> Any:
        return SabotagedConsumer(self._inner.consume(subscriptions), self._worker)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        self._worker.crash_at("publishing")
        unrouted: Sequence[Outgoing] = await self._inner.publish(messages)
        return unrouted


class SabotagedConsumer(Layer):
    """Dies at the step that the worker's options name, and tells what was refused."""

    def __init__(self, inner: Any, worker: WorkerApp) -> None:
        super().__init__(inner)
        self._worker = worker

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        deliveries: Sequence[Delivery] = await self._inner.fetch(room)
        if self._worker.is_victim(delivery.message for delivery in deliveries):
            self._worker.crash_at("claimed")
        return deliveries

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[Delivery]:
        ends = self._worker.is_victim(one.delivery.message for one in outcomes if one.action is not Action.RELEASE)
        if ends:
            self._worker.crash_at("handled")
            self._worker.settling = True
        lost: Sequence[Delivery] = await self._inner.settle(outcomes)
        if ends:
            self._worker.crash_at("settled")
        for delivery in lost:
            self._worker.tell("refused", id=delivery.message.id, attempt=delivery.message.attempt)
        self._worker.settled([one for one in outcomes if one.delivery not in lost])
        return lost


class WorkerApp:
    """The app, what it is told, and what it tells."""

    def __init__(self, url: str, options: Options) -> None:
        self.options = options
        self.settling = False
        self._stopping = False
        self.go = asyncio.Event()
        move_clock(options.clock)
        backend: Any = Sabotaged(open_backend(url), self)
        self.app = self._app(backend)
        if options.crash == "committing" and url.startswith("sqlite:"):
            self._die_before_commit()
        elif options.crash == "committing" and url.startswith("redis:"):
            self._die_amid_the_request()
        elif options.crash == "committing":
            self._die_amid_the_ack()

    def tell(self, event: str, **fields: object) -> None:
        print(json.dumps({"event": event, **fields}), flush=True)

    def crash_at(self, step: Step) -> None:
        if self.options.crash == step:
            die()

    def is_victim(self, messages: Iterable[Message]) -> bool:
        """Whether one of these is what the worker dies of."""
        return any(True for _ in messages)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """These are."""

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        listening = asyncio.create_task(self._listen())
        try:
            if self.options.publish:
                async with self.app:
                    await self._publish()
                return
            announcing = asyncio.create_task(self._announce())
            await self.app.run()
            announcing.cancel()
        finally:
            listening.cancel()

    def _app(self, backend: Backend) -> Carteiro:
        options = self.options
        app = Carteiro(
            "shop", backend, lease=options.lease, grace=options.grace, publish_timeout=options.publish_timeout,
            retry=Retry(attempts=options.attempts, backoff=constant(options.backoff)),
        )  # fmt: skip

        @app.subscriber("work", concurrency=options.concurrency)
        @app.publisher("done")
        async def handle(message: Message, task: Annotated[Task, Body()]) -> str:
            self.crash_at("decoded")
            if not options.quiet:
                self.tell("handling", id=message.id, attempt=message.attempt)
            if task.seconds:
                await asyncio.sleep(task.seconds)
            if message.attempt <= task.fails:
                raise Failed(f"attempt {message.attempt} of {task.fails} to fail")
            if task.do == "wait":
                await self.go.wait()
            elif task.do == "kill":
                die()
            elif task.do == "exit":
                os._exit(1)
            return message.id

        if not options.quiet:

            @app.publish_middleware
            async def emitted(outgoing: Outgoing, call_next: Callable[[Outgoing], Awaitable[None]]) -> None:
                self.tell("emits", id=outgoing.id, of=json.loads(outgoing.body))
                await call_next(outgoing)

        return app

    async def _announce(self) -> None:
        await self.app.ready()
        self.tell("ready")

    def _stop(self) -> None:
        self._stopping = True
        self.app.stop()

    async def _publish(self) -> None:
        async def one(number: int) -> None:
            try:
                id = await self.app.publish("work", Task(padding="x" * (number % 500)))
            except CarteiroError as error:
                self.tell("failed", error=type(error).__name__, text=str(error))
                return
            file = self.options.file
            self.tell("published", id=id, mark=None if file is None else msgspec.to_builtins(mark(Path(file))))

        self.tell("ready")
        for start in itertools.count(step=20):
            if self._stopping:
                break
            await asyncio.gather(*(one(number) for number in range(start, start + 20)))

    async def _listen(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command, *arguments = line.decode().split()
            if command == "go":
                self.go.set()
            elif command == "clock":
                move_clock(float(arguments[0]))
                self.tell("clock", offset=float(arguments[0]))
            elif command == "status":
                running = self.app.worker
                self.tell("status", trouble=running and running.trouble)

    def _die_before_commit(self) -> None:
        from carteiro.backends.sqlite.session import Session

        commit = Session.commit

        def commit_or_die(session: Session) -> None:
            if self.settling:
                die()
            commit(session)

        Session.commit = commit_or_die  # type: ignore[method-assign, assignment]

    def _die_amid_the_request(self) -> None:
        from carteiro.backends.redis import link, scripts

        call = link._Wire.call

        def call_or_die(wire: link._Wire, *words: link.Word, **options: Any) -> asyncio.Future[Any]:
            if scripts.SETTLE.sha in words and self.settling:
                request = link._pack(words)
                os.write(wire._transport.get_extra_info("socket").fileno(), request[: len(request) // 2])
                die()
            return call(wire, *words, **options)

        link._Wire.call = call_or_die  # type: ignore[method-assign, assignment]

    def _die_amid_the_ack(self) -> None:
        from carteiro.backends.rabbitmq.channel import Channel
        from carteiro.backends.rabbitmq.feed import Feed

        def ack_or_die(feed: Feed, tags: Iterable[int]) -> None:
            channel = feed._channel
            assert isinstance(channel, Channel)
            frame = channel.ack(max(tags))
            transport = channel.link._transport
            assert transport is not None
            os.write(transport.get_extra_info("socket").fileno(), frame[: len(frame) // 2])
            die()

        Feed.ack = ack_or_die  # type: ignore[method-assign, assignment]


class Narrator(logging.Handler):
    """What the worker logs, and its trouble at that moment, as events."""

    def __init__(self, worker: WorkerApp) -> None:
        super().__init__(logging.WARNING)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        running = self._worker.app.worker
        self._worker.tell("log", text=self.format(record), trouble=running and running.trouble)


async def main(worker: WorkerApp) -> None:
    options = worker.options
    logging.getLogger("carteiro").addHandler(Narrator(worker))
    if options.user is not None:
        os.setuid(options.user)
    try:
        await worker.run()
    except CarteiroError as error:
        worker.tell("failed", error=type(error).__name__, text=str(error))
        sys.exit(1)


if __name__ == "__main__":

    async def work() -> None:
        await main(WorkerApp(sys.argv[1], msgspec.json.decode(sys.argv[2], type=Options)))

    asyncio.run(work())
