"""What is published through an app: values become messages, and go to the brokers that they are for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from carteiro.brokers import DEFAULT, Brokers
from carteiro.connection import Connection, Connections
from carteiro.current import current
from carteiro.durations import Duration, seconds
from carteiro.engine.composing import check_text, compose, described
from carteiro.errors import ConfigurationError, NotConnected
from carteiro.handlers.codecs import Codec, decoder, encode
from carteiro.message import CONTENT_TYPE, EXPIRES_AT, NO_HEADERS, TYPE, Native, Outgoing, new_id
from carteiro.ports.clock import Clock
from carteiro.ports.native import named
from carteiro.router import Router
from carteiro.schedules.book import Schedules
from carteiro.schedules.declaring import QUEUE, Plan, Source, publishing
from carteiro.scheduling import ScheduleOffice
from carteiro.sync import SyncBridge
from carteiro.tasking import TaskOffice
from carteiro.tasks.canvas import Signature
from carteiro.tasks.declaring import declared
from carteiro.tasks.desk import Desk
from carteiro.tasks.task import Task
from carteiro.topics import DLQ_PREFIX

T = TypeVar("T")


class Publishing(Router):
    """An app as publishers use it. Whoever has its life in hand sets `_connections` while it is connected.

    `connect` opens connections of their own for code without an event loop; `dedupe` and `lease` are in seconds.
    """

    def __init__(
        self,
        name: str,
        brokers: Brokers,
        *,
        clock: Clock,
        codec: Codec,
        dedupe: float,
        lease: float,
        connect: Callable[[], Awaitable[Connections]],
    ) -> None:
        super().__init__()
        self.name = name
        self.clock = clock
        self._brokers = brokers
        self._codec: Codec = codec
        self._dedupe = dedupe
        self._connections: Connections | None = None
        self._closed: Mapping[str, str] = {}
        """The topics that nothing may be published to, and what to say to who tries."""
        self._sync = SyncBridge(connect)
        self.schedules = Schedules(ScheduleOffice(self))
        """Its schedules: those of its code, and those that are added while it runs."""
        self.tasks = Desk(TaskOffice(self, dedupe=dedupe, lease=lease))
        """Its tasks by name, and whatever is asked of tasks from outside of a worker."""

    async def publish(
        self,
        topic: str | Native,
        value: Any,
        *,
        broker: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        expires: Duration | None = None,
        id: str | None = None,
        correlation_id: str | None = None,
        mandatory: bool = False,
    ) -> str:
        """Publish `value` and return its message id once the broker has it safe.

        `topic` is a name, or an object of the broker's own such as `RedisList("jobs")`. `broker` is the name of one of
        the app's brokers; by default the one on which the topic lives.
        `delay` or `at` (aware): not before then. `expires`: not handled any more after so long. `id`: a second
        message with it within the app's dedupe window is dropped. `mandatory`: raise Unroutable if no group gets it.
        Raises BrokerUnavailable if the broker stays away for the app's `publish_timeout`; CircuitOpen, which is one, as
        soon as the app's breaker has cut it off. With an outbox it is kept there instead.
        """
        connections = self._connected()
        message = self.outgoing(
            topic, value, broker=broker, key=key, headers=headers, type=type, delay=delay, at=at, expires=expires,
            id=id, correlation_id=correlation_id,
        )  # fmt: skip
        await connections.of(message).publisher.publish(message, mandatory=mandatory)
        return message.id

    async def publish_many(
        self,
        topic: str | Native,
        values: Iterable[Any],
        *,
        broker: str | None = None,
        key: Callable[[Any], str | None] | None = None,
        id: Callable[[Any], str] | None = None,
        headers: Mapping[str, str] | None = None,
        delay: Duration | None = None,
        mandatory: bool = False,
    ) -> list[str]:
        """Publish each of `values`, in order, in large batches; returns their ids. `key` and `id` are functions."""
        connections = self._connected()
        messages = self.outgoing_many(topic, values, broker=broker, key=key, id=id, headers=headers, delay=delay)
        if messages:
            await connections.of(messages[0]).publisher.publish_many(messages, mandatory=mandatory)
        return [message.id for message in messages]

    async def request(
        self,
        topic: str,
        value: Any,
        *,
        broker: str | None = None,
        timeout: Duration = 30.0,
        returns: Any = Any,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
    ) -> Any:
        """Publish, and return what the handler returned, decoded as `returns`.

        Raises RequestTimeout, RequestFailed with the remote error if the handler gave up on it, Unroutable if there is
        no handler at all.
        """
        connections = self._connected()
        message = self.outgoing(topic, value, broker=broker, key=key, headers=headers, type=type, expires=timeout)
        return decoder(returns)(await connections.of(message).request(message, seconds(timeout)))

    def publish_sync(self, topic: str | Native, value: Any, *, mandatory: bool = False, **options: Any) -> str:
        """`publish` for code that has no event loop; takes the same options and can be called from any thread."""
        message = self.outgoing(topic, value, **options)
        self._sync.call(lambda connections: connections.of(message).publisher.publish(message, mandatory=mandatory))
        return message.id

    def publish_many_sync(
        self, topic: str | Native, values: Iterable[Any], *, mandatory: bool = False, **options: Any
    ) -> list[str]:
        """`publish_many` for code that has no event loop; takes the same options."""
        messages = self.outgoing_many(topic, values, **options)
        if messages:
            by = messages[0]
            self._sync.call(
                lambda connections: connections.of(by).publisher.publish_many(messages, mandatory=mandatory)
            )
        return [message.id for message in messages]

    def request_sync(
        self, topic: str, value: Any, *, timeout: Duration = 30.0, returns: Any = Any, **options: Any
    ) -> Any:
        """`request` for code that has no event loop."""
        message = self.outgoing(topic, value, expires=timeout, **options)
        reply = self._sync.call(lambda connections: connections.of(message).request(message, seconds(timeout)))
        return decoder(returns)(reply)

    def call_sync(self, work: Callable[[Connections], Awaitable[T]]) -> T:
        """Await this on the app's connections, from code that has no event loop."""
        return self._sync.call(work)

    def outgoing(
        self,
        topic: str | Native,
        value: Any,
        *,
        broker: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        expires: Duration | None = None,
        id: str | None = None,
        correlation_id: str | None = None,
    ) -> Outgoing:
        """The message that `publish` sends, encoded."""
        written = dict(headers) if headers else {}
        if type is not None:
            written[TYPE] = type
        if expires is not None:
            written[EXPIRES_AT] = repr(self.clock.time() + seconds(expires))
        wait = 0.0 if delay is None else seconds(delay)
        if at is not None:
            if at.tzinfo is None or delay is not None:
                raise ConfigurationError(f"at={at!r} for `{topic}`: give an aware datetime, and no delay beside it")
            wait = max(0.0, at.timestamp() - self.clock.time())
        name, target = named(topic)
        message_id = new_id() if id is None else id
        return compose(
            name, value, id=message_id, key=key, headers=written,
            correlation_id=correlation_id or _flow() or message_id, delay=wait, codec=self._codec,
            dedupe=None if id is None else self._dedupe, target=target, broker=self.home_of(topic, broker),
        )  # fmt: skip

    def outgoing_many(
        self,
        topic: str | Native,
        values: Iterable[Any],
        *,
        broker: str | None = None,
        key: Callable[[Any], str | None] | None = None,
        id: Callable[[Any], str] | None = None,
        headers: Mapping[str, str] | None = None,
        delay: Duration | None = None,
    ) -> list[Outgoing]:
        """The messages that `publish_many` sends, encoded. What they share is worked out once."""
        name, target = named(topic)
        home = self.home_of(topic, broker)
        shared = described(name, headers or NO_HEADERS, None)
        wait = 0.0 if delay is None else seconds(delay)
        flow, codec = _flow(), self._codec
        window = None if id is None else self._dedupe
        messages: list[Outgoing] = []
        for value in values:
            body, content_type = encode(value, codec=codec)
            written = shared if content_type is None else {CONTENT_TYPE: content_type, **shared}
            message_id = new_id() if id is None else id(value)
            message_key = None if key is None else key(value)
            if key is not None or id is not None:
                check_text(name, id=message_id, key=message_key)
            message = Outgoing(
                message_id, name, body, message_key, written, flow or message_id, wait, window, target, home
            )
            if target is not None:
                target.check_outgoing(message)
            messages.append(message)
        return messages

    # -- where it goes -----------------------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The default broker, its store and publisher; raises NotConnected outside `async with app` and `run`."""
        return self._connected()[DEFAULT]

    @property
    def connections(self) -> Connections:
        """Each of its brokers, by name, with store and publisher; raises NotConnected as `connection` does."""
        return self._connected()

    @property
    def url(self) -> str:
        """The default broker's URL, as given, by the environment, or the embedded one."""
        return self._brokers.url(DEFAULT)

    @property
    def urls(self) -> Mapping[str, str]:
        """The URL of each of its brokers, the default first."""
        return {name: self._brokers.url(name) for name in self._brokers}

    def broker_of(self, topic: str | Native, broker: str | None = None) -> str:
        """The name of the broker that a message to `topic` goes to; raises ConfigurationError for one that is none.

        It is the one asked for; else the one on which `topic` lives; else the default. A dead letter queue is where its
        topic is.
        """
        if broker is None:
            if not self._homes or not isinstance(topic, str):
                return DEFAULT
            broker = self._homes.get(topic) or self._homes.get(topic.removeprefix(DLQ_PREFIX))
            if broker is None:
                return DEFAULT
        return self._brokers.check(broker, f"a message to `{topic}`")

    def home_of(self, topic: str | Native, broker: str | None = None) -> str:
        """As `broker_of`, for what is published: raises ConfigurationError where this app is not to publish."""
        if self._closed and isinstance(topic, str) and topic in self._closed:
            raise ConfigurationError(self._closed[topic])
        return self.broker_of(topic, broker)

    def _take_task(self, task: Task[..., Any, Any]) -> None:
        super()._take_task(task)
        self.tasks.add(task)

    def _take_queue(self, name: str, concurrency: int) -> None:
        super()._take_queue(name, concurrency)
        self.tasks.add_queue(name)

    def _take_plan(self, plan: Plan) -> None:
        super()._take_plan(plan)
        self.schedules.declare(plan)

    def _take_source(self, source: Source) -> None:
        super()._take_source(source)
        task = declared(
            publishing(source), source.localns, source.middleware, name=source.name, queue=QUEUE,
            **source.options,
        )  # fmt: skip
        self._take_task(task)
        self.schedules.declare(source.plan(Signature(task=task)))

    def _connected(self) -> Connections:
        if self._connections is None:
            raise NotConnected(
                f"app `{self.name}` is not connected: use `async with app:` around it, `app.run()`, "
                "or `app.publish_sync(…)` where there is no event loop"
            )
        return self._connections


def _flow() -> str | None:
    """The correlation id of what is being handled here, if anything is."""
    delivery = current.get()
    return None if delivery is None else delivery.message.correlation_id
