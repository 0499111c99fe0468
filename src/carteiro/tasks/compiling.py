"""From a canvas to its graph.

A *flow* goes through the canvas from left to right: what the next one takes, and whom it comes after. A group gives a
list of nodes to take; where one node comes next it takes them itself, where several do, or where the list is a result
in its own right, a gather makes it: ten thousand after ten thousand are twenty thousand edges instead of a hundred
million.

Nodes are numbered as they are met. The one that is met last is the final one, which is node 0; only then callbacks
are compiled, which follow it in number.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from carteiro.errors import ConfigurationError, Unencodable
from carteiro.handlers.codecs import encode
from carteiro.tasks.canvas import Canvas, Chain, Group, Options, Priority, Signature
from carteiro.tasks.graph import GATHER, Edge, Graph, Node, Outline, Scope, Takes

TopicOf = Callable[[str, Priority], str]
"""The topic of a queue's tasks of a priority."""

MAX_DEPTH: Final = 300
"""How deep canvases nest. Whoever reads a result nested so deep recurses, two frames a level of Python's thousand."""

DRAWN: Final = 50
"""How many members of a group, or parts of a chain, its outline names one by one."""


def compile_canvas(
    canvas: Canvas,
    topic_of: TopicOf,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Options = Options(),  # noqa: B008  # frozen
    default_queue: str = "default",
) -> Graph:
    """The graph of a run of `canvas`, always with the same numbers.

    `args` and `kwargs` go to the first tasks, before their own; `options` are for all tasks that say nothing else, and
    when to start for the first ones. `default_queue` is for a run of no task at all. Raises ConfigurationError for what
    cannot be run, and Unencodable, which names the task and the argument.
    """
    return _Compiler(topic_of, options, default_queue).graph(canvas, args, kwargs or {})


class _Draft:
    """A node in the making."""

    __slots__ = (
        "arguments", "children", "each", "is_exit", "links", "number", "on_error", "options", "outline", "scopes",
        "size", "takes", "task", "topic",
    )  # fmt: skip

    def __init__(self, number: int, task: str, topic: str, flow: _Flow, scopes: _Spans) -> None:
        self.number = number
        self.task = task
        self.topic = topic
        self.size = len(flow.after) or 1
        self.takes = flow.takes
        self.scopes = scopes
        self.options = Options()
        self.arguments = b"[[],{}]"
        self.each = False
        self.is_exit = False
        self.outline: Outline = ["task", number, task]
        self.children: list[_Draft] = []
        self.links: list[_Draft] = []
        self.on_error: list[_Draft] = []
        for parent in flow.after:
            parent.children.append(self)
        if not flow.after:
            flow.starts.append(self)

    def edge(self) -> Edge:
        options = self.options
        return Edge(
            self.number, self.size, self.topic, self.task, options.delay or 0.0, options.at, options.expires,
            options.key, options.headers or None,
        )  # fmt: skip


class _Span:
    """A scope in the making."""

    __slots__ = ("collects", "exit", "on_error")

    def __init__(self, collects: bool) -> None:
        self.collects = collects
        self.exit: _Draft
        self.on_error: list[_Draft] = []


_Spans = tuple[_Span, ...]


class _Flow(NamedTuple):
    """What comes next takes this and comes `after` these; if they are none, it is one of those that `starts` lists."""

    takes: Takes
    after: tuple[_Draft, ...]
    starts: list[_Draft]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}

    def after_node(self, node: _Draft) -> _Flow:
        return _Flow(node.number, (node,), self.starts)


class _Callbacks(NamedTuple):
    """Canvases to be compiled later. They get the result of `node`, or its failure; their first ones join `starts`."""

    canvases: tuple[Canvas, ...]
    node: _Draft
    starts: list[_Draft]
    outlines: list[Outline]


class _Visit(NamedTuple):
    """A canvas to be compiled where it stands."""

    canvas: Canvas
    flow: _Flow
    scopes: _Spans
    collects: bool = False


_Compiled = tuple[_Flow, Outline]
_Steps = Generator[_Visit, _Compiled, _Compiled]


class _Compiler:
    def __init__(self, topic_of: TopicOf, options: Options, default_queue: str) -> None:
        self._topic_of = topic_of
        self._options = options
        self._default_queue = options.queue or default_queue
        self._nodes: list[_Draft] = []
        self._next_number = 1
        self._spans: list[_Span] = []
        self._later: deque[_Callbacks] = deque()
        self._first: list[_Draft] = []
        self._unused = False

    def graph(self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
        self._unused = bool(args or kwargs)
        outline = self._compiled(self._scope(_Visit(canvas, _Flow(None, (), self._first, args, kwargs), ())))
        if self._unused:
            raise ConfigurationError(
                f"nothing takes the arguments that {canvas!r} is started with: what it begins with is immutable"
            )
        final = self._nodes[-1]
        final.number = final.outline[1] = 0
        self._next_number -= 1
        while self._later:
            self._compile_callbacks(self._later.popleft())
        return self._finished(canvas.label, outline)

    def _compile_callbacks(self, callbacks: _Callbacks) -> None:
        for canvas in callbacks.canvases:
            visit = _Visit(canvas, _Flow(callbacks.node.number, (), callbacks.starts), ())
            steps = self._visit(visit) if isinstance(canvas, Signature) else self._scope(visit)
            callbacks.outlines.append(self._compiled(steps))

    def _compiled(self, outermost: _Steps) -> Outline:
        """Run the steps and those of each visit they wait for: nesting costs an entry of a list, and no recursion."""
        stack = [outermost]
        done: Any = None
        while stack:
            try:
                visit = stack[-1].send(done)
            except StopIteration as end:
                stack.pop()
                done = end.value
            else:
                if len(stack) >= MAX_DEPTH:
                    raise ConfigurationError(
                        f"{visit.canvas!r} is nested more than {MAX_DEPTH} levels deep: start what is inside as a run "
                        "of its own"
                    )
                stack.append(self._visit(visit))
                done = None
        outline: Outline = done[1]
        return outline

    # -- the kinds of canvas ------------------------------------------------------------------------------------------

    def _visit(self, visit: _Visit) -> _Steps:
        is_scope = visit.collects or (visit.canvas.on_error and not isinstance(visit.canvas, Signature))
        return (yield from (self._scope(visit) if is_scope else self._inside(visit)))

    def _inside(self, visit: _Visit) -> _Steps:
        canvas, flow, scopes, _ = visit
        if isinstance(canvas, Signature):
            return self._task(canvas, flow, scopes)
        if isinstance(canvas, Chain):
            return (yield from self._chain(canvas, flow, scopes))
        assert isinstance(canvas, Group)
        return (yield from self._group(canvas, flow, scopes))

    def _scope(self, visit: _Visit) -> _Steps:
        canvas = visit.canvas
        span = _Span(visit.collects)
        self._spans.append(span)
        scopes = (span, *visit.scopes)
        flow, outline = yield from self._inside(visit._replace(scopes=scopes))
        # Its record tells how the scope ended, and of one only: what is inside may fail where the outer one does not.
        if isinstance(flow.takes, list) or flow.after[0].is_exit:
            flow = self._gathered(flow, scopes)
        span.exit = flow.after[0]
        span.exit.is_exit = True
        if not isinstance(canvas, Signature):
            outline = self._called_back(outline, canvas.on_error, span.exit, span.on_error)
        return flow, outline

    def _task(self, call: Signature, flow: _Flow, scopes: _Spans) -> _Compiled:
        if call.immutable:
            flow = flow._replace(takes=None)
        elif flow.args or flow.kwargs:
            call = call.clone(*flow.args, **flow.kwargs)
            self._unused = False
        options = call.options.over(self._options, first=flow.starts is self._first and not flow.after)
        topic = self._topic_of(options.queue or call.task.queue, options.priority or "normal")
        node = self._node(call.task.name, topic, flow, scopes)
        node.options = options
        node.arguments = _encoded(call)
        node.each = call.each
        outline = self._called_back(node.outline, call.links, node, node.links)
        outline = self._called_back(outline, call.on_error, node, node.on_error)
        return flow.after_node(node), outline

    def _chain(self, canvas: Chain, flow: _Flow, scopes: _Spans) -> _Steps:
        drawn: list[_Drawn] = []
        for part in canvas.parts:
            before = self._next_number
            flow, outline = yield _Visit(part, flow, scopes)
            drawn.append(_Drawn(part.label, before, self._next_number - 1, outline))
        last = drawn.pop()  # it may be node 0, which is in no range
        return flow, ["chain", [*_summary(drawn), last.outline]]

    def _group(self, canvas: Group, flow: _Flow, scopes: _Spans) -> _Steps:
        collects = canvas.errors == "collect"
        if len(canvas.members) > 1 and len(flow.after) > 1:
            flow = self._gathered(flow, scopes)
        elif not canvas.members:
            self._unused = False
        takes: list[Any] = []
        after: dict[_Draft, None] = {}
        drawn: list[_Drawn] = []
        for member in canvas.members:
            before = self._next_number
            out, outline = yield _Visit(member, flow, scopes, collects)
            takes.append(out.takes)
            after.update(dict.fromkeys(out.after))
            drawn.append(_Drawn(member.label, before, self._next_number - 1, outline))
        flow = _Flow(takes, tuple(after) or flow.after, flow.starts)
        outline = ["collect" if collects else "group", _summary(drawn)]
        if canvas.links:
            flow = self._gathered(flow, scopes)
            node = flow.after[0]
            outline = self._called_back(outline, canvas.links, node, node.links)
        return flow, outline

    # -- their parts --------------------------------------------------------------------------------------------------

    def _node(self, task: str, topic: str, flow: _Flow, scopes: _Spans) -> _Draft:
        node = _Draft(self._next_number, task, topic, flow, scopes)
        self._next_number += 1
        self._nodes.append(node)
        return node

    def _gathered(self, flow: _Flow, scopes: _Spans) -> _Flow:
        """The flow through a node that makes what it takes; it is sent to where its first parent was."""
        if flow.after:
            topic = flow.after[0].topic
        else:
            topic = self._topic_of(self._default_queue, self._options.priority or "normal")
        return flow.after_node(self._node(GATHER, topic, flow, scopes))

    def _called_back(
        self, outline: Outline, callbacks: tuple[Canvas, ...], node: _Draft, starts: list[_Draft]
    ) -> Outline:
        if not callbacks:
            return outline
        if outline[0] != "with":
            outline = ["with", outline, [], []]
        drawn = outline[2] if starts is node.links else outline[3]
        self._later.append(_Callbacks(callbacks, node, starts, drawn))
        return outline

    def _finished(self, name: str, outline: Outline) -> Graph:
        edges = {node: node.edge() for node in self._nodes}

        def to(nodes: Iterable[_Draft]) -> tuple[Edge, ...]:
            return tuple([edges[node] for node in nodes])

        nodes = {
            node.number: Node(
                edge,
                node.arguments,
                node.takes,
                next=to(node.children + node.links),
                scopes=tuple([span.exit.number for span in node.scopes]),
                on_error=to(node.on_error),
                each=node.each,
            )
            for node, edge in edges.items()
        }
        scopes = {
            span.exit.number: Scope(
                span.exit.number,
                span.collects,
                next=to(span.exit.children) if span.collects else (),
                on_error=to(span.on_error),
            )
            for span in self._spans
        }
        return Graph(name, nodes, scopes, to(self._first), outline)


# -- arguments -------------------------------------------------------------------------------------------------------


def _encoded(call: Signature) -> bytes:
    try:
        return encode((call.args, call.kwargs))[0]
    except Unencodable:
        for name, value in itertools.chain(enumerate(call.args, 1), call.kwargs.items()):
            try:
                encode([value])
            except Unencodable as error:
                which = f"`{name}`" if isinstance(name, str) else f"number {name}"
                raise Unencodable(f"task `{call.task.name}`, argument {which}: {error}") from error
        raise


# -- what is drawn ---------------------------------------------------------------------------------------------------


class _Drawn(NamedTuple):
    """A part of a canvas as it is drawn, and the numbers of its nodes."""

    label: str
    first: int
    last: int
    outline: Outline


def _summary(parts: Sequence[_Drawn]) -> list[Outline]:
    """Their outlines; where they are too many, one for like ones that stand together, and one for all that are over."""
    if len(parts) <= DRAWN:
        return [part.outline for part in parts]
    runs = [list(like) for _, like in itertools.groupby(parts, lambda part: part.label)]
    shown = [_run(run[0].label, run) for run in runs[: DRAWN - 1]]
    rest = [part for run in runs[DRAWN - 1 :] for part in run]
    return [*shown, _run("…", rest)] if rest else shown


def _run(label: str, parts: Sequence[_Drawn]) -> Outline:
    if len(parts) == 1:
        return parts[0].outline
    return ["many", parts[0].first, parts[-1].last, label, len(parts)]
