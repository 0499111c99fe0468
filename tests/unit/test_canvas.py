"""What users write: signatures, and what they are put together to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from carteiro.errors import ConfigurationError
from carteiro.tasks.canvas import Canvas, Chain, Group, Options, Signature, chain, chord, chunks, group, mapped
from tests.unit.graph_machine import Named

a, b, c, d = Named("a"), Named("b"), Named("c"), Named("d")


def anything(value: object) -> Any:
    """What a user without a type checker may pass."""
    return value


def names(canvas: Chain) -> list[str]:
    return [part.label for part in canvas.parts]


# -- signatures ------------------------------------------------------------------------------------------------------


def test_changing_a_signature_makes_another_one() -> None:
    call = a.s(1, k=2)

    assert call.clone(0, k=3) is not call
    assert (call.clone(0, k=3).args, call.clone(0, k=3).kwargs) == ((0, 1), {"k": 3})
    assert call.set(queue="slow").options == Options(queue="slow")
    assert call.link(b.s()).links
    assert call.link_error(b.s()).on_error
    assert (call.args, call.kwargs, call.options, call.links, call.on_error) == ((1,), {"k": 2}, Options(), (), ())


def test_options_are_added_to_those_that_were_said_before() -> None:
    call = a.s().set(queue="slow", headers={"tenant": "7"}).set(priority="high", headers={"trace": "x"}, queue=None)

    assert call.options == Options(queue="slow", priority="high", headers={"tenant": "7", "trace": "x"})


def test_a_time_to_start_is_a_countdown_or_a_moment_and_the_last_word_counts() -> None:
    at = datetime(2031, 5, 1, tzinfo=UTC)

    assert a.s().set(countdown="1m").options == Options(delay=60.0)
    assert a.s().set(countdown=timedelta(minutes=1)).set(eta=at).options == Options(at=at.timestamp())
    assert a.s().set(eta=at).set(countdown=5).options == Options(delay=5.0)
    assert a.s().set(expires="1h").options == Options(expires=3600.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"que": "slow"}, "no option `que`: it has queue, priority, countdown"),
        ({"priority": 3}, "priority=3: it is high, normal or low"),
        ({"countdown": 5, "eta": datetime(2031, 5, 1, tzinfo=UTC)}, "give one of them"),
        ({"eta": datetime(2031, 5, 1)}, "a datetime with a time zone"),  # noqa: DTZ001
        ({"countdown": -1}, "no length of time"),
        ({"expires": "soon"}, "no length of time"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_where_it_is_said(options: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        a.s().set(**options)


# -- chains, groups, chords -------------------------------------------------------------------------------------------


def test_chains_of_chains_are_one_chain() -> None:
    assert names(a.s() | b.s() | (c.s() | d.s())) == ["a", "b", "c", "d"]
    assert names(chain(a.s(), chain(b.s(), c.s()), d.s())) == ["a", "b", "c", "d"]
    assert names(chain(task.s() for task in (a, b))) == ["a", "b"]


def test_a_chain_with_an_error_callback_stays_a_chain_of_its_own() -> None:
    whole = (a.s() | b.s()).link_error(d.s()) | c.s()

    assert names(whole) == ["a | b", "c"]


def test_a_chains_link_is_its_last_ones() -> None:
    linked = (a.s() | b.s()).link(c.s())
    first, last = linked.parts

    assert isinstance(first, Signature)
    assert isinstance(last, Signature)
    assert (len(first.links), len(last.links)) == (0, 1)


def test_a_group_takes_its_members_one_by_one_or_an_iterable() -> None:
    assert len(group(a.s(), b.s()).members) == 2
    assert len(group(a.s(i) for i in range(3)).members) == 3
    assert len(group(a.s()).members) == 1
    assert len(group([]).members) == len(group().members) == 0


def test_a_chord_is_a_group_and_what_comes_after_it() -> None:
    header, body = chord((a.s(i) for i in range(3)), b.s(), errors="collect").parts

    assert isinstance(header, Group)
    assert (len(header.members), header.errors, body.label) == (3, "collect", "b")
    ready = group(a.s(), errors="collect")
    assert chord(ready, b.s()).parts[0] is ready
    stopping = chord(ready, b.s(), errors="stop").parts[0]
    assert isinstance(stopping, Group)
    assert stopping.errors == "stop"


def test_map_calls_the_task_with_each_item_and_spreads_tuples() -> None:
    calls = mapped(a, [1, [2, 3], (4, 5)]).members

    assert [call.args for call in calls if isinstance(call, Signature)] == [(1,), ([2, 3],), (4, 5)]


def test_chunks_put_several_calls_into_one_signature() -> None:
    first, second = chunks(a.s("to", k=1), [1, (2, 3), 4], 2).members

    assert isinstance(first, Signature)
    assert isinstance(second, Signature)
    assert (first.args, second.args) == (((1, "to"), (2, 3, "to")), ((4, "to"),))
    assert first.each
    assert first.kwargs == {"k": 1}
    assert first.clone(0).args == ((0, 1, "to"), (0, 2, 3, "to"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: group(anything(a)), r"group\(\) takes signatures, chains and groups, not .*did you mean `a.s\(\)`\?"),
        (lambda: chain(a.s(), anything(7)), r"chain\(\) takes signatures, chains and groups, not 7"),
        (lambda: a.s().link(anything(b)), r"link\(\) takes .*did you mean `b.s\(\)`\?"),
        (lambda: a.s().link_error(anything(b)), r"link_error\(\) takes .*did you mean `b.s\(\)`\?"),
        (chain, "at least one signature"),
        (lambda: group(a.s(), errors=anything("ignore")), "errors='ignore' of a group: it is `stop` or `collect`"),
        (lambda: chunks(a, [1], 0), "at least one call"),
        (lambda: mapped(anything(chunks(a, [1], 1).members[0]), [1]), "give the task itself"),
    ],
)
def test_what_cannot_be_put_together_is_refused_with_the_way_out(make: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make()


def test_only_a_canvas_can_come_after_one() -> None:
    with pytest.raises(TypeError):
        a.s() | b  # type: ignore[operator]


def test_a_canvas_is_shown_in_a_few_words() -> None:
    assert repr(a.s(1)) == "<signature a>"
    assert repr(group(a.s() for _ in range(1000))) == "<group group(1000)>"
    assert repr(chain(a.s(), group(b.s()), (c.s() | d.s()).link_error(a.s()))) == "<chain a | group(1) | chain(2)>"
    assert repr(chain(a.s() for _ in range(1000))) == "<chain a | a | a | a | a | …>"


# -- starting --------------------------------------------------------------------------------------------------------


@dataclass
class App:
    """Notes what it is asked to start."""

    started: list[tuple[Canvas, tuple[Any, ...], Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=list)

    async def start_run(self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any) -> Any:
        return self.start_run_sync(canvas, args, kwargs, **options)

    def start_run_sync(self, canvas: Canvas, args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any) -> Any:
        self.started.append((canvas, args, kwargs, options))
        return f"run {len(self.started)}"


@dataclass(frozen=True)
class Owned:
    home: App
    name: str = "owned"
    queue: str = "default"


async def test_the_app_of_its_first_task_starts_a_canvas() -> None:
    app = App()
    canvas = group(group(), chain(group(Signature(Owned(app)), a.s()), b.s()))

    assert await canvas.delay(1, k=2) == "run 1"
    assert await canvas.apply_async((1,), {"k": 2}, countdown=60) == "run 2"
    assert canvas.delay_sync(3) == "run 3"

    assert app.started == [
        (canvas, (1,), {"k": 2}, {}),
        (canvas, (1,), {"k": 2}, {"countdown": 60}),
        (canvas, (3,), {}, {}),
    ]


async def test_a_canvas_without_any_task_belongs_to_no_app() -> None:
    with pytest.raises(ConfigurationError, match=r"<group group\(0\)> holds no task"):
        await group().delay()
