"""Any canvas gives by its graph what it gives by plain calls, in whatever order its messages are handled."""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from carteiro.tasks.canvas import Canvas, chain, chord, chunks, group
from carteiro.tasks.graph import Graph, Node, Scope, pack, unpack_node, unpack_scope
from tests.unit.graph_machine import Machine, Named, compiled, run_plain

names = st.sampled_from(["a", "b", "c", "d", "e", "f", "x", "x2"])
arguments = st.lists(st.integers(0, 9), max_size=2)
errors = st.sampled_from(["stop", "collect"])

signatures = st.one_of(
    st.builds(lambda name, args: Named(name).s(*args), names, arguments),
    st.builds(lambda name, args: Named(name).s(*args, k=1), names, arguments),
    st.builds(lambda name, args: Named(name).si(*args), names, arguments),
)
slices = st.builds(
    lambda name, items, size, errors: chunks(Named(name), items, size, errors=errors),
    names,
    st.lists(st.integers(0, 9), max_size=5),
    st.integers(1, 3),
    errors,
)


def nested(inner: st.SearchStrategy[Canvas]) -> st.SearchStrategy[Canvas]:
    groups = st.builds(lambda members, errors: group(members, errors=errors), st.lists(inner, max_size=4), errors)
    return st.one_of(
        st.builds(chain, st.lists(inner, min_size=1, max_size=4)),
        groups,
        st.builds(chord, groups, inner),
        st.builds(lambda left, right: left | right, inner, inner),
        st.builds(lambda canvas, callback: canvas.link(callback), inner, inner),
        st.builds(lambda canvas, callback: canvas.link_error(callback), inner, inner),
    )


canvases = st.recursive(st.one_of(signatures, slices), nested, max_leaves=14)


def kept(graph: Graph) -> Graph:
    """The graph as it comes back from the store."""
    return msgspec.structs.replace(
        graph,
        nodes={number: unpack_node(pack(node)) for number, node in graph.nodes.items()},
        scopes={number: unpack_scope(pack(scope)) for number, scope in graph.scopes.items()},
    )


@settings(max_examples=300, deadline=None)
@given(canvas=canvases, seed=st.integers(0, 2**32))
def test_a_run_ends_as_plain_calls_do_whatever_the_order_of_its_messages(canvas: Canvas, seed: int) -> None:
    plain = run_plain(canvas)
    machine = Machine(kept(compiled(canvas)), random.Random(seed))

    machine.run()

    if plain.origins:
        assert machine.failed.get(0) in plain.origins
        assert 0 not in machine.values
    else:
        assert 0 not in machine.failed
        assert machine.values[0] == plain.value
    assert plain.sure <= machine.calls
    assert machine.calls <= plain.sure + plain.maybe
    assert all(times == 1 for times in machine.runs.values())


@settings(max_examples=100, deadline=None)
@given(canvas=canvases)
def test_a_graph_is_of_one_piece(canvas: Canvas) -> None:
    graph = compiled(canvas)

    assert graph == compiled(canvas), "a canvas has one graph"
    assert sorted(graph.nodes) == list(range(len(graph.nodes)))
    parents: dict[int, set[int]] = {number: set() for number in graph.nodes}
    for number, node in graph.nodes.items():
        assert node.edge.node == number
        assert node.edge.task == node.task
        for edge in node.next:
            assert edge == graph.nodes[edge.node].edge
            parents[edge.node].add(number)
        assert graph.scopes.keys() >= set(node.scopes)
        assert len(set(node.scopes)) == len(node.scopes), "each scope has an exit of its own"
    for number, node in graph.nodes.items():
        assert node.edge.size == max(1, len(parents[number]))
    check_scopes(graph.nodes, graph.scopes)


def check_scopes(nodes: Mapping[int, Node], scopes: Mapping[int, Scope]) -> None:
    assert not scopes[0].collects
    for exit, scope in scopes.items():
        assert scope.exit == exit
        assert exit in nodes[exit].scopes, "an exit is in its own scope"
        inside = {number for number, node in nodes.items() if exit in node.scopes}
        for number in inside - {exit}:
            assert {edge.node for edge in nodes[number].next} & inside, "all in a scope leads to its exit"
