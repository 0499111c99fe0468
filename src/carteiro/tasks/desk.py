"""What an app does with its tasks from outside of a worker: it declares them, and sends them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from carteiro.current import current
from carteiro.durations import Duration, seconds
from carteiro.engine.composing import Draft, check_text, described
from carteiro.errors import BrokerUnavailable, ConfigurationError, NoResult
from carteiro.message import TYPE, Message, Outgoing, Write, new_id
from carteiro.tasks.asking import Asking
from carteiro.tasks.canvas import Canvas, Chain, Options, Priority, Signature, TaskLike, tasks_in
from carteiro.tasks.compiling import compile_canvas
from carteiro.tasks.following import Sender
from carteiro.tasks.graph import Graph, Node, unpack_graph
from carteiro.tasks.graph import pack as pack_part
from carteiro.tasks.office import Office
from carteiro.tasks.queues import queue_of, subscriptions_of, topic_of, write_down
from carteiro.tasks.records import (
    OPEN_TTL,
    PART_TTL,
    RETRY,
    RUN_TTL,
    UNIQUE,
    RunInfo,
    node_id,
    node_key,
    open_key,
    pack,
    run_key,
    scope_key,
)
from carteiro.tasks.result import RunResult, TaskResult
from carteiro.tasks.retrying import header_of
from carteiro.tasks.task import DEFAULT_QUEUE, Task, TaskOptions
from carteiro.tasks.unique import Locks, Unique, lock_key, unique_of

T = TypeVar("T")

AT_ONCE: Final = 2_000
"""Parts of a run in one write, and messages in one publish."""
START_TASK: Final = "carteiro.start"
"""The type of a message that starts a run: its graph is the body, and its id the run's."""


class Desk(Asking):
    """The tasks of one app. `tasks` are those that it declares, by name."""

    def __init__(self, office: Office) -> None:
        super().__init__(office)
        self.tasks: dict[str, Task[..., Any, Any]] = {}
        self.queues: set[str] = set()
        """Those that its code names."""
        self._found: set[str] = set()
        """Those that only calls name, and that this process has written down."""
        self.starter: Task[..., Any, Any] = Task(self._begin, START_TASK, TaskOptions(result=False))
        """What starts the runs that are sent as a message, as those of schedules are."""

    def __getitem__(self, name: str) -> Task[..., Any, Any]:
        """The task of this name. Raises ConfigurationError, naming those that there are."""
        try:
            return self.tasks[name]
        except KeyError:
            known = ", ".join(sorted(self.tasks)) or "none"
            raise ConfigurationError(f"app `{self._office.name}` has no task `{name}`: it has {known}") from None

    def add(self, task: Task[..., Any, Any]) -> None:
        """Raises ConfigurationError where another task has its name."""
        other = self.tasks.setdefault(task.name, task)
        if other is not task:
            raise ConfigurationError(
                f"two tasks of app `{self._office.name}` are called `{task.name}`: give one of them another name="
            )
        task.belong(self)
        self.add_queue(task.queue)

    def add_queue(self, name: str) -> None:
        """Raises ConfigurationError for what is no name of a queue."""
        topic_of(self._office.name, name)
        self.queues.add(name)

    def result(self, id: str, *, task: str = "", returns: Any = Any) -> TaskResult[Any]:
        """The handle of a task that was sent by anyone. Its type is that of `task`, if that is named."""
        if task:
            returns = self[task].returns
        return TaskResult(id, self, task=task, returns=returns)

    def run(self, id: str) -> RunResult[Any]:
        """The handle of a run that was started by anyone."""
        return RunResult(id, self)

    def check_kept(self, task: str) -> None:
        """Raises NoResult where nothing is kept of the calls of the task of this name."""
        known = self.tasks.get(task)
        if known is not None and not known.options.result:
            raise NoResult(f"task `{task}` keeps nothing: it is declared with result=False")

    # -- sending ---------------------------------------------------------------------------------------------------

    async def send(
        self, task: Task[..., Any, T], args: Iterable[Any], kwargs: Mapping[str, Any], **options: Any
    ) -> TaskResult[T]:
        """As `Task.apply_async`."""
        return await self._send(task, *self._composed(task, args, kwargs, **options))

    def send_sync(
        self, task: Task[..., Any, T], args: Iterable[Any], kwargs: Mapping[str, Any], **options: Any
    ) -> TaskResult[T]:
        """As `Task.apply_sync`."""
        composed = self._composed(task, args, kwargs, **options)
        self.sync(lambda desk: desk._send(task, *composed))
        return TaskResult(composed[0].id, self, task=task.name, returns=task.returns)

    async def start_run(
        self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any
    ) -> TaskResult[Any]:
        """As `Canvas.apply_async`. What it is made of is safe in the store, and its first messages in the broker."""
        lone = _lone(canvas)
        if lone is not None:
            if lone.immutable and (args or kwargs):
                raise ConfigurationError(
                    f"nothing takes the arguments that {canvas!r} is started with: it is immutable"
                )
            task, said = self._own(lone.task), lone.options.over(Options().but(**options), first=True)
            message, unique = self._composed(task, (*args, *lone.args), {**kwargs, **lone.kwargs}, said=said)
            return await self._send(task, message, unique)
        run, graph = new_id(), self._compiled(canvas, args, kwargs, options)
        await self._start(run, graph)
        return RunResult(run, self, returns=_returns(canvas))

    def start_run_sync(
        self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any
    ) -> TaskResult[Any]:
        """As `start_run`, for code that has no event loop."""
        handle = self.sync(lambda desk: desk.start_run(canvas, args, kwargs, **options))
        return type(handle)(handle.id, self, task=handle.task, returns=handle.returns)

    def draft(self, canvas: Canvas) -> tuple[Draft, tuple[str, Unique] | None]:
        """The message that makes this call or starts this run whenever it is sent, and the lock of a unique task.

        Raises ConfigurationError for a call that says itself at what time it is due.
        """
        lone = _lone(canvas)
        if lone is None:
            graph = self._compiled(canvas, (), {}, {})
            if any(node.edge.at is not None for node in graph.nodes.values()):
                raise _has_eta(canvas)
            topic = graph.first[0].topic if graph.first else topic_of(self._office.name, DEFAULT_QUEUE)
            return Draft(topic, pack_part(graph), headers={TYPE: START_TASK}, broker=self._office.home_of(topic)), None
        if lone.options.at is not None:
            raise _has_eta(canvas)
        task = self._own(lone.task)
        draft = self._drafted(task, lone.args, lone.kwargs, lone.options)
        unique = task.options.unique
        return draft, None if unique is None else (self._lock_of(task, draft.body, unique), unique)

    def _composed(
        self,
        task: Task[..., Any, Any],
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        *,
        countdown: Duration | None = None,
        eta: datetime | None = None,
        expires: Duration | None = None,
        queue: str | None = None,
        priority: Priority | None = None,
        key: str | None = None,
        unique: bool | str | Unique | None = None,
        headers: Mapping[str, str] | None = None,
        retry: Any = None,
        id: str | None = None,
        said: Options | None = None,
    ) -> tuple[Outgoing, Unique | None]:
        """The message, and whether there is to be only one."""
        if said is None:
            said = Options().but(
                countdown=countdown, eta=eta, expires=expires, queue=queue, priority=priority, key=key, headers=headers
            )
        draft, now = self._drafted(task, args, kwargs, said), self._office.clock.time()
        if retry is not None:
            draft = msgspec.structs.replace(draft, headers={**draft.headers, RETRY: header_of(retry)})
        if said.at is not None:
            draft = msgspec.structs.replace(draft, delay=max(0.0, said.at - now))
        flow = current.get()
        message_id = new_id() if id is None else id
        check_text(draft.topic, id=message_id)
        message = draft.outgoing(
            message_id, now, dedupe=None if id is None else self._office.dedupe_window,
            flow=None if flow is None else flow.message.correlation_id,
        )  # fmt: skip
        return message, task.options.unique if unique is None else unique_of(unique)

    def _drafted(
        self, task: Task[..., Any, Any], args: Iterable[Any], kwargs: Mapping[str, Any], said: Options
    ) -> Draft:
        own = task.options
        topic = topic_of(self._office.name, said.queue or own.queue, said.priority or own.priority)
        check_text(topic, key=said.key)
        return Draft(
            topic, task.body(args, kwargs), said.key, {**described(topic, said.headers, None), TYPE: task.name},
            said.delay or 0.0, own.expires if said.expires is None else said.expires, self._office.home_of(topic),
        )  # fmt: skip

    async def _send(self, task: Task[..., Any, T], message: Outgoing, unique: Unique | None) -> TaskResult[T]:
        await self.know(message.topic)
        if unique is None:
            await self._connected().publish([message])
            return TaskResult(message.id, self, task=task.name, returns=task.returns)
        message = msgspec.structs.replace(message, dedupe=self._office.dedupe_window)
        id = await self.send_once(message, self._lock_of(task, message.body, unique), unique)
        return TaskResult(id, self, task=task.name, returns=task.returns)

    def _lock_of(self, task: Task[..., Any, Any], body: bytes, unique: Unique) -> str:
        return lock_key(task.name, unique, {**task.defaults, **msgspec.json.decode(body)}, body)

    async def send_once(self, message: Outgoing, lock: str, unique: Unique) -> str:
        """Send it unless a task that holds the lock waits or runs; returns the id of the one that does from now on."""
        window = None if unique.window is None else seconds(unique.window)
        locks = Locks(self._store(), self._office.clock)
        taken = await locks.take(lock, message.id, window)
        if taken.ours:
            headers = message.headers if window is not None else {**message.headers, UNIQUE: lock}
            sent = msgspec.structs.replace(message, id=taken.id, headers=headers)
            try:
                await self._connected().publish([sent])
            except BaseException:
                with contextlib.suppress(BrokerUnavailable):
                    await locks.not_sent(lock, taken, window)
                raise
            await locks.sent(lock, taken, window)
        return taken.id

    def _compiled(
        self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Graph:
        name = self._office.name
        for task in tasks_in(canvas):
            self._own(task)
        return compile_canvas(
            canvas, lambda queue, priority: topic_of(name, queue, priority), args=args, kwargs=kwargs,
            options=Options().but(**options),
        )  # fmt: skip

    def _own(self, task: TaskLike) -> Task[..., Any, Any]:
        """Raises ConfigurationError for one of another app, whose workers are not asked for it."""
        own = self[task.name]
        if isinstance(task, Task) and own is not task:
            raise ConfigurationError(
                f"task `{task.name}` of a canvas is another app's, and not that of app `{self._office.name}`: a run is "
                "of one app; start one of the other's from within a task"
            )
        return own

    async def _begin(self, message: Message) -> None:
        """Start the run of this message, unless it has been over since: a second time changes nothing."""
        there = await self._store().get((run_key(message.id), open_key(message.id)))
        if run_key(message.id) in there and open_key(message.id) not in there:
            return
        await self._start(message.id, unpack_graph(message.body), dedupe=self._office.dedupe_window)

    async def _start(self, run: str, graph: Graph, *, dedupe: float | None = None) -> None:
        link, store = self._connected(), self._store()
        for topic in {node.edge.topic for node in graph.nodes.values()}:
            await self.know(topic)
        now = self._office.clock.time()
        info = RunInfo(graph.name, now, len(graph.nodes), graph.outline)
        # Callbacks that are delayed come after the run is over, when nobody tends its parts any more.
        ttl = PART_TTL + min(RUN_TTL, sum(_wait(node, now) for node in graph.nodes.values()))
        writes = [Write(run_key(run), pack(info), ttl=ttl), Write(open_key(run), b"", ttl=OPEN_TTL)]
        writes += (Write(scope_key(run, exit), pack_part(scope), ttl=ttl) for exit, scope in graph.scopes.items())
        writes += (
            Write(node_key(node_id(run, number)), pack_part(node), ttl=ttl) for number, node in graph.nodes.items()
        )
        for some in _batched(writes, AT_ONCE):
            await store.write(some)
        flow = current.get()
        sender = Sender(run, run if flow is None else flow.message.correlation_id, self._office.home_of, now)
        for edges in _batched(graph.first, AT_ONCE):
            await link.publish([msgspec.structs.replace(sender.to(edge), dedupe=dedupe) for edge in edges])

    async def know(self, topic: str) -> None:
        """See that the queue behind this topic is one that workers take up."""
        place = queue_of(self._office.name, topic)
        assert place is not None, topic
        queue, _ = place
        if queue in self.queues or queue in self._found:
            return
        await self._connected().broker.declare(subscriptions_of(self._office.name, queue, self._office.task_lease))
        await write_down(self._store(), self._office.name, queue=queue)
        self._found.add(queue)


def _wait(node: Node, now: float) -> float:
    """Seconds for which it is delayed once it is sent, at most."""
    return node.edge.delay if node.edge.at is None else max(0.0, node.edge.at - now)


def _has_eta(canvas: Canvas) -> ConfigurationError:
    return ConfigurationError(f"{canvas!r} has an eta of its own, and is to be sent at other times: drop it")


def _lone(canvas: Canvas) -> Signature | None:
    """The signature that needs no run: a single call, and nothing after it."""
    if isinstance(canvas, Signature) and not (canvas.links or canvas.on_error or canvas.each):
        return canvas
    return None


def _returns(canvas: Canvas) -> Any:
    while isinstance(canvas, Chain):
        canvas = canvas.parts[-1]
    if isinstance(canvas, Signature) and not canvas.each and isinstance(canvas.task, Task):
        return canvas.task.returns
    return Any


def _batched(items: Iterable[T], size: int) -> Iterable[Sequence[T]]:
    left = iter(items)
    while batch := list(itertools.islice(left, size)):
        yield batch
