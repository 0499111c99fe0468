"""Any canvas gives on the real engine what it gives by plain calls, whatever order its tasks end in and however often
the worker dies: in virtual time, with crashes drawn at random. `make soak` draws more of them: SOAK_EXAMPLES (2,000).
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast, get_args

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from carteiro import Carteiro, Message, Retry, exponential
from carteiro.backends.memory.entries import Entries
from carteiro.message import Write
from carteiro.tasks.canvas import Canvas
from carteiro.tasks.internal import GATHER
from carteiro.tasks.records import Record
from carteiro.tasks.task import Task
from carteiro.testing import TestApp
from carteiro.testing.wiretap import CrashPoint
from tests.unit.graph_machine import FAILURE, Failed, Plain, call_text, called, run_plain
from tests.unit.store_apart import Apart, StoreApart, ending_of
from tests.unit.test_graph_random import canvases

EXAMPLES = 50
SOAK_EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "2000"))
NAMES = ("a", "b", "c", "d", "e", "f", "x", "x2")
GATHERS = "gather"
LONGEST = timedelta(hours=2)
"""A run takes less, however often its workers die: a lease is half a minute."""
NOTHING = "nothing"
"""What an argument is that was not given."""

Fate = tuple[str, CrashPoint | Apart]

names = st.sampled_from([*NAMES, GATHERS])
fates: st.SearchStrategy[Fate] = st.tuples(names, st.sampled_from(["claimed", "before_ack", "after_ack"]))
fates_apart: st.SearchStrategy[Fate] = st.tuples(names, st.sampled_from(["ended", "written", "joined"]))


class OnceMore(Exception):
    """What a task raises that is to be tried again."""


class Shop:
    """An app with the tasks of `graph_machine`, which end in a random order, some after another attempt, and what was
    seen of one run of it.
    """

    def __init__(self, seed: int) -> None:
        self.calls: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        """Of each message each attempt: the calls that it made."""
        self.ends: defaultdict[str, list[Record]] = defaultdict(list)
        """By key, each record written that says that a task is over."""
        self._chance = random.Random(seed)
        self.app = Carteiro("shop", retry=Retry(attempts=50, backoff=exponential(1), not_on=(Failed,)))
        self.tasks: dict[str, Task[..., Any, Any]] = {name: self._task(name) for name in NAMES}
        self.tasks[GATHERS] = GATHER

    def _task(self, name: str) -> Task[..., Any, Any]:
        async def run(
            message: Message, first: Any = NOTHING, second: Any = NOTHING, third: Any = NOTHING, k: Any = NOTHING
        ) -> str:
            args = [plain(one) for one in (first, second, third) if one != NOTHING]
            kwargs = {} if k == NOTHING else {"k": k}
            self.calls[message.id][message.attempt].append(call_text(name, args, kwargs))
            await self.app.clock.sleep(self._chance.choice([0, 0, 0, 0.1, 1]))
            if self._chance.random() < 0.2:
                raise OnceMore
            return called(name, args, kwargs, Counter())

        return self.app.task(name=name)(run)

    async def run(self, canvas: Canvas, crashes: Sequence[Fate], *, apart: bool) -> Any:
        """The run's result, plain, or the Failed that ended it; once all that was caused is over, too."""
        t = TestApp(self.app, patience=0)
        if apart:
            StoreApart(t, [(self.tasks[name].name, point) for name, point in crashes])
        async with t:
            for name, point in crashes:
                if point in get_args(CrashPoint):
                    t.crash_at(self.tasks[name], cast(CrashPoint, point))
            handle = await self.app.tasks.start_run(canvas, (), {})
            try:
                result = plain(await t.result(handle, timeout=LONGEST))
            except Failed as error:
                result = error
            await t.advance(hours=1)  # callbacks, and what was on its way
            left = {where: status for where, status in t.groups().items() if status.left}
            assert left == {}, "something never came to its end"
            return result

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note what is committed to the store."""
        write, write_all = Entries.write, Entries.write_all
        log: list[Write] = []

        def noted(entries: Entries, one: Write) -> bool:
            done = write(entries, one)
            if done:
                log.append(one)
            return done

        def all_noted(entries: Entries, some: Sequence[Write]) -> bool:
            before = len(log)
            done = write_all(entries, some)
            if not done:
                del log[before:]
            return done

        Entries.write, Entries.write_all = noted, all_noted  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Entries.write, Entries.write_all = write, write_all  # type: ignore[method-assign]
        for one in log:
            if (record := ending_of(one)) is not None:
                self.ends[one.key].append(record)


def plain(value: Any) -> Any:
    """With each failure as the one value that the plain calls have for it."""
    if isinstance(value, Exception):
        return FAILURE
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict) and ("$failed" in value or "traceback" in value):
        return FAILURE
    return value


def told(shop: Shop, expected: Plain, result: Any) -> None:
    """What is shown of an example that fails."""
    note(
        f"by plain calls: {expected.value!r}, or failed by one of {sorted(expected.origins)}; on the engine: {result!r}"
    )
    for id, attempts in shop.calls.items():
        note(f"  {id}: " + "; ".join(f"attempt {number}: {', '.join(calls)}" for number, calls in attempts.items()))
    for key, records in shop.ends.items():
        note(f"  {key}: " + ", ".join(f"{one.status} in attempt {one.attempt}" for one in records))


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """What tasks that are to fail log is of no use to whoever reads of a failing example."""
    logger = logging.getLogger("carteiro")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@settings(max_examples=EXAMPLES, deadline=None)
@given(canvas=canvases, crashes=st.lists(fates, max_size=4), seed=st.integers(0, 2**32))
def test_a_run_ends_as_plain_calls_do_wherever_its_workers_die(canvas: Canvas, crashes: list[Fate], seed: int) -> None:
    check(canvas, crashes, seed, apart=False)


@settings(max_examples=EXAMPLES, deadline=None)
@given(canvas=canvases, crashes=st.lists(fates | fates_apart, max_size=6), seed=st.integers(0, 2**32))
def test_a_run_whose_store_is_not_its_brokers_ends_as_plain_calls_do_wherever_its_workers_die(
    canvas: Canvas, crashes: list[Fate], seed: int
) -> None:
    check(canvas, crashes, seed, apart=True)


@pytest.mark.soak
@settings(max_examples=SOAK_EXAMPLES, deadline=None)
@given(
    canvas=canvases, crashes=st.lists(fates | fates_apart, max_size=10), seed=st.integers(0, 2**32), apart=st.booleans()
)
def test_soak(canvas: Canvas, crashes: list[Fate], seed: int, apart: bool) -> None:
    check(canvas, crashes, seed, apart=apart)


def check(canvas: Canvas, crashes: Sequence[Fate], seed: int, *, apart: bool) -> None:
    faulthandler.cancel_dump_traceback_later()  # a run that never ends is seen in virtual time; shrinking takes long
    expected, shop = run_plain(canvas), Shop(seed)
    with shop.listening():
        result = asyncio.run(shop.run(canvas, crashes, apart=apart))
    told(shop, expected, result)

    if expected.origins:
        assert isinstance(result, Failed), "it succeeded, and was to fail"
        assert str(result) in expected.origins
    else:
        assert result == expected.value
    made = Counter[str]()
    for id, attempts in shop.calls.items():
        longest = max(attempts.values(), key=len)
        for number, calls in attempts.items():  # one that was cut short has made the first of them
            assert calls == longest[: len(calls)], f"attempt {number} at {id} was given other arguments"
        made.update(longest)
    assert expected.sure <= made, f"never called: {expected.sure - made}"
    # With the store apart a worker that dies before its ack has sent on what its heir sends again: a body may run once
    # more for each death, and its node ends once all the same. In one commit it never does.
    copies = 1 + len(crashes) if apart else 1
    allowed = Counter({call: count * copies for call, count in (expected.sure + expected.maybe).items()})
    assert made <= allowed, f"called too often: {made - allowed}"
    for key, records in shop.ends.items():
        assert len({(one.status, one.result, one.flaw) for one in records}) == 1, f"{key} ended in two ways"
        assert records[0].status != "succeeded" or len(records) == 1, f"{key} was committed {len(records)} times"
