"""A run as the store keeps it: who is sent when, what each takes, and how far a failure reaches.

A run's graph is written once, when the run is started, a node and a scope an entry; its messages carry (run, node) and
nothing else. `compiling.py` makes it from a canvas. The rules by which it is run:

- `Graph.first` are sent to start it.
- A node that succeeds adds itself to the set of each edge in `next`; whoever completes the set, of `size` members,
  sends the edge's node. A set of one needs no adding.
- A node makes its first argument from the records of those that it takes. A *gather* is a node of no task that ends
  with what it takes as its result: a list that many need is made once.
- A node that fails for good starts its own `on_error` and then fails its scopes, from the inside out. The first to
  fail a scope writes the failure to its exit's record and starts the scope's `on_error`. A scope that collects ends it
  there: its `next` are followed with the exit as the member, as if that had succeeded, and its failure stands in the
  list that is made of it. A node that takes a single node, which has failed, is an error callback: it gets the failure.
- A node is not run if the exit of one of its scopes has failed, or if the run was cancelled.

Scope 0 is the run, and node 0 its final node: the run's result is that node's. Callbacks are in no scope of what they
were linked to: their outermost scope is their own, if they are more than one task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

GATHER: Final = ""
"""The task's name of a gather."""

Takes = int | list[Any] | None
"""What is put before a node's own arguments: a node's result, a list of such (nested as the groups are), or nothing."""

Outline = list[Any]
"""A canvas to be drawn, as nested lists; see `Graph.outline`."""


class Edge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A way to a node: all that it takes to send it.

    `size` is how many members the set of the node's parents has; 1: it has one, or none, and no set. `delay` and
    `expires` are seconds after it is sent, `at` is seconds since the epoch.
    """

    node: int
    size: int
    topic: str
    task: str
    delay: float = 0.0
    at: float | None = None
    expires: float | None = None
    key: str | None = None
    headers: Mapping[str, str] | None = None


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One message of a run.

    `arguments` is JSON, `[[positional], {by name}]`, without what it takes. With `each` it is many calls: the
    positional ones are lists of arguments, one a call; what it takes goes first in each, and the named ones to all; the
    result is the list of theirs.
    """

    edge: Edge
    """Its own: the way to it."""
    arguments: bytes
    takes: Takes
    next: tuple[Edge, ...]
    scopes: tuple[int, ...]
    """The exits of those that it is in, the innermost first."""
    on_error: tuple[Edge, ...] = ()
    each: bool = False

    @property
    def task(self) -> str:
        return self.edge.task


class Scope(msgspec.Struct, frozen=True, array_like=True):
    """How far a failure reaches: the run, a member of a group that collects, a canvas with error callbacks.

    `exit` is the node whose result is its result, and whose record is failed if anything in it fails for good. `next`
    is followed then, if it `collects`.
    """

    exit: int
    collects: bool
    next: tuple[Edge, ...]
    on_error: tuple[Edge, ...]


class Graph(msgspec.Struct, frozen=True):
    """A run, compiled.

    `outline` is what to draw of it: `["task", node, name]`, `["chain", [...]]`, `["group", [...]]` or, of one that
    collects, `["collect", [...]]`; `["many", first, last, label, count]` in place of that many like parts, whose nodes
    are those from first to last; `["with", outline, [links...], [error callbacks...]]`.
    """

    name: str
    nodes: Mapping[int, Node]
    scopes: Mapping[int, Scope]
    first: tuple[Edge, ...]
    outline: Outline


pack = msgspec.msgpack.Encoder().encode
"""A node, a scope or a whole graph as bytes."""

unpack_node = msgspec.msgpack.Decoder(Node).decode
unpack_scope = msgspec.msgpack.Decoder(Scope).decode
unpack_graph = msgspec.msgpack.Decoder(Graph).decode
