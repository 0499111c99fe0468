"""From a canvas to a graph: who takes what, how large it is, how far failures reach."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from carteiro.errors import ConfigurationError, Unencodable
from carteiro.tasks.canvas import Canvas, Options, chain, chord, chunks, group, mapped
from carteiro.tasks.compiling import MAX_DEPTH, compile_canvas
from carteiro.tasks.graph import GATHER, Graph, pack
from tests.unit.graph_machine import FAILURE, Machine, Named, call_text, compiled, topic_of

a, b, c, d = Named("a"), Named("b"), Named("c"), Named("d")
note = Named("note")
fails = Named("x")


def takes(graph: Graph) -> dict[int, Any]:
    return {number: node.takes for number, node in graph.nodes.items()}


def ran(canvas: Canvas, *args: Any) -> Machine:
    machine = Machine(compiled(canvas, *args), random.Random(1))
    machine.run()
    return machine


def bytes_of(graph: Graph) -> int:
    parts = [*graph.nodes.values(), *graph.scopes.values(), graph.first, graph.outline]
    return sum(len(pack(part)) for part in parts)


# -- who takes what --------------------------------------------------------------------------------------------------


def test_the_last_task_of_a_chain_is_node_0() -> None:
    graph = compiled(a.s(1) | b.s(2) | c.s(3))

    assert takes(graph) == {1: None, 2: 1, 0: 2}
    assert [edge.node for edge in graph.first] == [1]
    assert [node.arguments for node in graph.nodes.values()] == [b"[[1],{}]", b"[[2],{}]", b"[[3],{}]"]


def test_each_member_of_a_group_takes_what_came_before_and_their_list_goes_on() -> None:
    graph = compiled(a.s() | group(b.s(), c.s()) | d.s())

    assert takes(graph) == {1: None, 2: 1, 3: 1, 0: [2, 3]}
    assert {edge.size for edge in graph.nodes[2].next + graph.nodes[3].next} == {2}


def test_a_group_of_one_gives_a_list() -> None:
    assert takes(compiled(group(a.s()) | b.s())) == {1: None, 0: [1]}
    assert ran(group(a.s())).values[0] == [ran(a.s()).values[0]]


def test_a_group_of_none_gives_an_empty_list_when_its_turn_comes() -> None:
    assert ran(group()).values == {0: []}
    graph = compiled(a.s() | group() | b.s())
    assert takes(graph) == {1: None, 0: []}
    assert [edge.node for edge in graph.nodes[1].next] == [0]
    assert ran(group(), 7).values == {0: []}


def test_lists_are_nested_as_the_groups_are() -> None:
    graph = compiled(group(group(a.s(), b.s()), group(), c.s()) | d.s())

    assert takes(graph) == {1: None, 2: None, 3: None, 0: [[1, 2], [], 3]}


def test_a_groups_own_result_is_gathered() -> None:
    graph = compiled(group(a.s(), b.s()))

    assert takes(graph) == {1: None, 2: None, 0: [1, 2]}
    assert graph.nodes[0].task == GATHER


def test_a_group_after_a_group_takes_the_whole_list() -> None:
    graph = compiled(group(a.s(), b.s()) | group(c.s(), d.s()))

    assert takes(graph) == {1: None, 2: None, 3: [1, 2], 4: 3, 5: 3, 0: [4, 5]}


def test_an_immutable_task_takes_nothing_and_still_waits() -> None:
    graph = compiled(group(a.s(), b.s()) | c.si(1))

    assert takes(graph) == {1: None, 2: None, 0: None}
    assert [edge.size for edge in graph.nodes[1].next] == [2]


def test_what_a_canvas_is_started_with_goes_to_its_first_tasks() -> None:
    graph = compiled(group(a.s(2), b.si(3), chunks(c, [4], 1)) | d.s(5), 1, k=6)

    assert [node.arguments for node in graph.nodes.values()] == [
        b'[[1,2],{"k":6}]', b"[[3],{}]", b'[[[1,4]],{"k":6}]', b"[[5],{}]",
    ]  # fmt: skip


def test_arguments_that_nobody_takes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"nothing takes the arguments that <chain a \| b> is started with"):
        compiled(a.si() | b.s(), 1)


def test_a_chunk_is_one_message_of_many_calls() -> None:
    machine = ran(chunks(a, [1, 2, (3, 4)], 2))

    assert len(machine.graph.nodes) == 3
    assert machine.calls == {call_text("a", args, {}): 1 for args in ([1], [2], [3, 4])}
    assert machine.values[0] == [[*ran(mapped(a, [1, 2])).values[0]], [ran(a.s(3, 4)).values[0]]]


# -- how it is sent --------------------------------------------------------------------------------------------------


def test_an_edge_holds_all_that_it_takes_to_send_the_node() -> None:
    at = datetime(2031, 5, 1, tzinfo=UTC)
    call = b.s().set(queue="slow", priority="low", eta=at, expires=60, key="7", headers={"tenant": "z"})
    graph = compiled(a.s() | call)

    (edge,) = graph.nodes[1].next
    assert (edge.topic, edge.task, edge.at, edge.expires) == ("tasks.shop.slow.low", "b", at.timestamp(), 60.0)
    assert (edge.key, edge.headers) == ("7", {"tenant": "z"})
    assert edge == graph.nodes[0].edge


def test_a_runs_options_are_for_tasks_that_say_nothing_and_its_start_is_for_the_first() -> None:
    options = Options().but(queue="bulk", priority="low", countdown=60, headers={"tenant": "z"})
    canvas = group(a.s(), b.s().set(queue="slow", countdown=5)) | c.s().set(priority="high", headers={"step": "3"})
    graph = compile_canvas(canvas, topic_of, options=options)

    sent = {edge.task: edge for edge in (*graph.first, *graph.nodes[1].next)}
    assert {task: edge.topic for task, edge in sent.items()} == {
        "a": "tasks.shop.bulk.low", "b": "tasks.shop.slow.low", "c": "tasks.shop.bulk.high",
    }  # fmt: skip
    assert {task: edge.delay for task, edge in sent.items()} == {"a": 60.0, "b": 5.0, "c": 0.0}
    assert sent["c"].headers == {"tenant": "z", "step": "3"}


def test_a_list_is_gathered_where_its_first_member_ran() -> None:
    graph = compiled(group(Named("a", "gpu").s(), b.s()))

    assert graph.nodes[0].edge.topic == "tasks.shop.gpu"


class Order(BaseModel):
    id: int


def test_arguments_are_encoded_as_bodies_are() -> None:
    graph = compiled(a.s(Order(id=7), by=Order(id=8)))

    assert graph.nodes[0].arguments == b'[[{"id":7}],{"by":{"id":8}}]'


@pytest.mark.parametrize(
    ("canvas", "says"),
    [
        (a.s() | b.s(1, object()), "task `b`, argument number 2: cannot encode `builtins.object`"),
        (group(a.s(by={"x": object()})), "task `a`, argument `by`: cannot encode `builtins.object`"),
    ],
)
def test_an_argument_that_cannot_be_encoded_is_named(canvas: Canvas, says: str) -> None:
    with pytest.raises(Unencodable, match=says):
        compiled(canvas)


# -- failures and callbacks ------------------------------------------------------------------------------------------


def test_a_failing_member_ends_the_run() -> None:
    machine = ran(group(a.s(), fails.s()) | b.s())

    assert machine.failed[0] == "x"
    assert 0 not in machine.runs


def test_a_group_that_collects_has_the_failure_in_its_place() -> None:
    machine = ran(group(a.s(), fails.s() | b.s(), errors="collect"))

    assert machine.values[0] == [machine.values[1], FAILURE]
    assert machine.runs.keys() == {0, 1, 2}


def test_an_error_callback_is_called_once_with_the_failure() -> None:
    machine = ran(group(fails.s(1), fails.s(2), fails.s(3)).link_error(note.s("told")))

    assert machine.calls[call_text("note", [FAILURE, "told"], {})] == 1


def test_error_callbacks_of_canvases_with_one_end_are_called_each_for_its_own() -> None:
    def calls(canvas: Canvas) -> set[str]:
        return {text.partition("[")[0] for text in ran(canvas).calls}

    def both(first: Canvas, second: Canvas) -> Canvas:
        return chain(first, chain(a.s(), second).link_error(Named("inner").s())).link_error(Named("outer").s())

    assert calls(both(b.s(), fails.s())) == {"b", "a", "x", "inner", "outer"}
    assert calls(both(fails.s(), b.s())) == {"x", "outer"}


def test_a_link_gets_the_result_and_has_no_part_in_it() -> None:
    machine = ran(a.s().link(fails.s() | b.s()) | c.s())

    assert machine.calls.keys() >= {call_text("x", [machine.values[1]], {})}
    assert 0 in machine.values
    assert machine.graph.nodes[2].scopes == (3,), "the callback is a scope of its own"


def test_a_groups_link_gets_the_list() -> None:
    machine = ran(group(a.s(), b.s()).link(note.s()) | c.s())

    assert machine.calls[call_text("note", [[machine.values[1], machine.values[2]]], {})] == 1


def test_a_link_is_not_followed_where_the_failure_is_collected() -> None:
    machine = ran(group(fails.s().link(note.s()), errors="collect") | c.s())

    assert machine.calls.keys() == {call_text("x", [], {}), call_text("c", [[FAILURE]], {})}


def test_the_rest_of_a_callback_is_stopped_by_its_own_failure_only() -> None:
    graph = compiled(a.s().link_error(group(b.s(), c.s()) | d.s()))

    exit = next(number for number, node in graph.nodes.items() if node.task == "d")
    assert {node.task: node.scopes for node in graph.nodes.values()} == {
        "a": (0,), "b": (exit,), "c": (exit,), "d": (exit,),
    }  # fmt: skip


# -- size ------------------------------------------------------------------------------------------------------------


def test_a_chord_of_10_000_is_10_001_nodes_and_bytes_in_proportion() -> None:
    small = compiled(chord((a.s(i) for i in range(1_000)), b.s()))
    large = compiled(chord((a.s(i) for i in range(10_000)), b.s()))

    assert len(large.nodes) == 10_001
    assert bytes_of(large) < 10.5 * bytes_of(small)
    assert bytes_of(large) < 10_001 * 150


def test_a_group_of_10_000_after_another_has_edges_in_proportion() -> None:
    graph = compiled(group(a.s(i) for i in range(10_000)) | group(b.s() for _ in range(10_000)))

    assert len(graph.nodes) == 20_002
    assert sum(len(node.next) for node in graph.nodes.values()) == 30_000
    assert bytes_of(graph) < 20_002 * 150


def test_a_chain_of_10_000_can_be_built_either_way() -> None:
    calls = [a.s(i) for i in range(10_000)]
    piped: Canvas = calls[0]
    for call in calls[1:]:
        piped = piped | call

    graph = compiled(piped)
    assert len(graph.nodes) == 10_000
    assert graph == compiled(chain(calls))


def test_canvases_nest_hundreds_of_levels_deep_whatever_the_recursion_limit() -> None:
    canvas: Canvas = a.s()
    for _ in range((MAX_DEPTH - 1) // 2):
        canvas = chord([canvas, b.s()], c.s())

    assert 0 in ran(canvas).values


def test_canvases_that_nest_too_deep_are_refused() -> None:
    canvas: Canvas = a.s()
    for _ in range(MAX_DEPTH):
        canvas = group(canvas)

    with pytest.raises(ConfigurationError, match=f"<signature a> is nested more than {MAX_DEPTH} levels deep"):
        compiled(canvas)


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_the_outline_draws_the_canvas_with_its_nodes() -> None:
    graph = compiled(a.s() | group(b.s().link(note.s()), c.s(), errors="collect").link_error(note.s()) | d.s())

    linked = ["with", ["task", 2, "b"], [["task", 5, "note"]], []]
    collecting = ["with", ["collect", [linked, ["task", 3, "c"]]], [], [["task", 6, "note"]]]
    assert graph.outline == ["chain", [["task", 1, "a"], collecting, ["task", 0, "d"]]]
    assert graph.name == "a | group(2) | d"


def test_like_parts_are_drawn_as_one_where_there_are_many() -> None:
    many = compiled(group(a.s() | b.s() for _ in range(100)) | c.s())
    mixed = compiled(group(Named(f"t{i}").s() for i in range(100)))
    long = compiled(chain(a.s() for _ in range(100)))

    assert many.outline == ["chain", [["group", [["many", 1, 200, "a | b", 100]]], ["task", 0, "c"]]]
    assert mixed.outline[1][48:] == [["task", 49, "t48"], ["many", 50, 100, "…", 51]]
    assert long.outline == ["chain", [["many", 1, 99, "a", 99], ["task", 0, "a"]]]
