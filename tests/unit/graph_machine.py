"""Canvases run in two ways: by plain calls, and by the rules of `tasks/graph.py` in an order that somebody draws.

Tasks here are functions by name: a name that starts with `x` fails. What a task returns tells its name and arguments,
so that equal results mean equal calls. Every failure is the same value, since which of two comes first is chance.
"""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from carteiro.tasks.canvas import Canvas, Chain, Group, Home, Signature
from carteiro.tasks.compiling import compile_canvas
from carteiro.tasks.graph import GATHER, Edge, Graph, Takes

FAILURE = {"failed": True}


class Failed(Exception):
    pass


@dataclass(frozen=True)
class Named:
    """A task of which nothing is known but its name."""

    name: str
    queue: str = "default"

    @property
    def home(self) -> Home:
        raise AssertionError("nothing is started here")

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        return Signature(self, args, kwargs, immutable=True)


def topic_of(queue: str, priority: str) -> str:
    return f"tasks.shop.{queue}" + ("" if priority == "normal" else f".{priority}")


def compiled(canvas: Canvas, *args: Any, **kwargs: Any) -> Graph:
    return compile_canvas(canvas, topic_of, args=args, kwargs=kwargs)


def call_text(name: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    return f"{name}{json.dumps([list(args), kwargs], sort_keys=True)}"


def called(name: str, args: Iterable[Any], kwargs: Mapping[str, Any], calls: Counter[str]) -> str:
    text = call_text(name, args, kwargs)
    calls[text] += 1
    if name.startswith("x"):
        raise Failed(name)
    return f"{name}.{zlib.crc32(text.encode()):x}"


# -- by plain calls ---------------------------------------------------------------------------------------------------


@dataclass
class Plain:
    """What a canvas does: `origins` are the tasks of which one fails it, none if it succeeds.

    `sure` are the calls that are made in any order of events, `maybe` those that a failure elsewhere can forestall.
    """

    value: Any = None
    origins: set[str] = field(default_factory=set)
    sure: Counter[str] = field(default_factory=Counter)
    maybe: Counter[str] = field(default_factory=Counter)

    def add(self, other: Plain, *, sure: bool = True) -> None:
        """Its calls; with `sure=False` a failure elsewhere may come before them."""
        if sure:
            self.sure += other.sure
            self.maybe += other.maybe
        else:
            self.maybe += other.sure + other.maybe


def run_plain(canvas: Canvas, args: tuple[Any, ...] = ()) -> Plain:
    links: tuple[Canvas, ...] = ()
    if isinstance(canvas, Signature):
        ran, links = _signature(canvas, args), canvas.links
    elif isinstance(canvas, Chain):
        ran = _chain(canvas, args)
    else:
        assert isinstance(canvas, Group)
        ran, links = _group(canvas, args), canvas.links
    if ran.origins:
        for callback in canvas.on_error:
            ran.add(run_plain(callback, (FAILURE,)))
    else:
        for callback in links:
            ran.add(run_plain(callback, (ran.value,)))
    return ran


def _signature(call: Signature, args: tuple[Any, ...]) -> Plain:
    ran = Plain()
    taken = () if call.immutable else args
    try:
        if call.each:
            ran.value = [called(call.task.name, (*taken, *one), call.kwargs, ran.sure) for one in call.args]
        else:
            ran.value = called(call.task.name, (*taken, *call.args), call.kwargs, ran.sure)
    except Failed:
        ran.origins = {call.task.name}
    return ran


def _chain(canvas: Chain, args: tuple[Any, ...]) -> Plain:
    ran = Plain()
    for part in canvas.parts:
        one = run_plain(part, args)
        ran.add(one)
        ran.value, ran.origins, args = one.value, one.origins, (one.value,)
        if one.origins:
            break
    return ran


def _group(canvas: Group, args: tuple[Any, ...]) -> Plain:
    ran = Plain()
    members = [run_plain(member, args) for member in canvas.members]
    failing = [member for member in members if member.origins]
    collects = canvas.errors == "collect"
    for member in members:
        ran.add(member, sure=collects or not failing or (failing == [member]))
    if failing and not collects:
        ran.origins = set().union(*(member.origins for member in failing))
    ran.value = [FAILURE if member.origins else member.value for member in members]
    return ran


# -- by the graph -----------------------------------------------------------------------------------------------------


class Machine:
    """Messages in any order, an attempt begun and ended in two steps with others between, some delivered twice."""

    def __init__(self, graph: Graph, chance: random.Random) -> None:
        self.graph = graph
        self.calls: Counter[str] = Counter()
        self.runs: Counter[int] = Counter()
        self.values: dict[int, Any] = {}
        self.failed: dict[int, str] = {}
        """Of each node whose record is failed, the task that did it."""
        self._chance = chance
        self._redeliveries = 10
        self._waiting: list[int] = []
        self._running: list[tuple[int, Any]] = []
        self._joins: dict[int, list[int]] = {}
        self._broken: dict[int, int] = {}
        """Of each scope that has failed, the node that failed it first."""

    def run(self) -> None:
        self._send(self.graph.first)
        while self._waiting or self._running:
            chosen = self._chance.randrange(len(self._waiting) + len(self._running))
            if chosen < len(self._waiting):
                self._begin(self._waiting.pop(chosen))
            else:
                self._end(*self._running.pop(chosen - len(self._waiting)))

    def _begin(self, number: int) -> None:
        node = self.graph.nodes[number]
        if number in self.values or number in self.failed:
            self._follow(number)
        elif not any(scope in self.failed for scope in node.scopes):
            self.runs[number] += 1
            try:
                self._running.append((number, self._result(number)))
            except Failed as error:
                self._running.append((number, error))

    def _end(self, number: int, result: Any) -> None:
        assert number not in {*self.values, *self.failed}, f"node {number} was over while it ran"
        if isinstance(result, Failed):
            self.failed[number] = str(result)
        else:
            self.values[number] = result
        self._follow(number)
        if self._redeliveries and self._chance.random() < 0.2:
            self._redeliveries -= 1
            self._waiting.append(number)

    def _result(self, number: int) -> Any:
        node = self.graph.nodes[number]
        taken: tuple[Any, ...] = () if node.takes is None else (self._taken(node.takes),)
        if node.task == GATHER:
            return taken[0]
        args, kwargs = json.loads(node.arguments)
        if node.each:
            return [called(node.task, (*taken, *one), kwargs, self.calls) for one in args]
        return called(node.task, (*taken, *args), kwargs, self.calls)

    def _taken(self, takes: Takes) -> Any:
        if isinstance(takes, list):
            return [self._taken(one) for one in takes]
        assert takes is not None
        return FAILURE if takes in self.failed else self.values[takes]

    def _follow(self, number: int) -> None:
        node = self.graph.nodes[number]
        if number in self.values:
            self._join(node.next, number)
            return
        if self.runs[number]:
            self._send(node.on_error)
            self._fail(number)

    def _fail(self, number: int) -> None:
        for exit in self.graph.nodes[number].scopes:
            scope = self.graph.scopes[exit]
            if self._broken.setdefault(exit, number) == number:
                assert exit not in self.values, f"scope {exit} failed after it had succeeded"
                self.failed[exit] = self.failed[number]
                self._send(scope.on_error)
                self._join(scope.next, exit)
            if scope.collects:
                break

    def _join(self, edges: Iterable[Edge], member: int) -> None:
        for edge in edges:
            added = self._joins.setdefault(edge.node, [])
            if member not in added:
                added.append(member)
                assert len(added) <= edge.size, f"node {edge.node} has more parents than {edge.size}"
            if len(added) == edge.size and added[-1] == member:
                self._send([edge])

    def _send(self, edges: Iterable[Edge]) -> None:
        there = {*self._waiting, *(number for number, _ in self._running)}
        self._waiting += [edge.node for edge in edges if edge.node not in there]
