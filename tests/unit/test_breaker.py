"""The breaker around publishing: when it cuts a broker off, what callers get then, and how they get it back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections.abc import AsyncIterator

import pytest

from carteiro import Carteiro
from carteiro.engine.publisher import Publisher
from carteiro.errors import BrokerUnavailable, CircuitOpen, ConfigurationError, Unroutable
from carteiro.policies.breaker import Breaker, BreakerStatus
from carteiro.testing.clock import VirtualClock
from tests.unit.outage import ORDERS, Unsteady, later, outgoing

BREAKER = Breaker(failures=3, after=5, cooldown=1, longest=8)


class Stage:
    """A broker, and a publisher that has a breaker."""

    def __init__(self, breaker: Breaker = BREAKER, timeout: float = 30.0) -> None:
        self.clock = VirtualClock()
        self.broker = Unsteady(self.clock)
        self.publisher = Publisher(self.broker, (), self.clock, timeout, name="events", breaker=breaker)

    @property
    def status(self) -> BreakerStatus:
        status = self.publisher.breaker
        assert status is not None
        return status

    def publish(self, body: int = 1) -> asyncio.Task[None]:
        return asyncio.create_task(self.publisher.publish(outgoing(body)))

    async def lose_the_broker(self) -> None:
        """Until it is cut off."""
        self.broker.away = True
        doomed = self.publish()
        while not doomed.done():
            await later(self.clock, 0.1)
        with pytest.raises(CircuitOpen):
            await doomed


@contextlib.asynccontextmanager
async def staged(breaker: Breaker = BREAKER, timeout: float = 30.0) -> AsyncIterator[Stage]:
    stage = Stage(breaker, timeout)
    await stage.broker.declare([ORDERS])
    yield stage
    await stage.publisher.close()


# -- when it opens -----------------------------------------------------------------------------------------------------


async def test_an_outage_shorter_than_its_patience_is_waited_for_as_ever():
    async with staged() as stage:
        stage.broker.away = True
        waiting = stage.publish(7)
        await later(stage.clock, 4)
        assert not waiting.done()

        stage.broker.away = False
        await later(stage.clock, 4)

        await waiting
        assert stage.broker.bodies == [b"7"]
        assert (stage.status.state, stage.status.failures, stage.status.opened) == ("closed", 0, 0)


async def test_a_longer_one_raises_before_the_timeout_and_then_at_once():
    async with staged() as stage:
        began = stage.clock.time()
        await stage.lose_the_broker()
        assert 5 <= stage.clock.time() - began < 6

        tries, now = stage.broker.tries, stage.clock.time()
        for number in range(100):
            with pytest.raises(CircuitOpen):
                await stage.publisher.publish(outgoing(number))
        with pytest.raises(CircuitOpen):
            await stage.publisher.publish_many([outgoing(1), outgoing(2)])
        with pytest.raises(CircuitOpen):
            await stage.publisher.reach(lambda: stage.broker.declare([ORDERS]))

        assert (stage.broker.tries, stage.clock.time()) == (tries, now)


async def test_the_error_names_the_broker_since_when_it_is_cut_off_why_and_when_it_is_tried_again():
    async with staged() as stage:
        await stage.lose_the_broker()
        with pytest.raises(BrokerUnavailable) as raised:
            await stage.publisher.publish(outgoing(1))

    error = raised.value
    assert isinstance(error, CircuitOpen)
    text = str(error)
    assert "publishing to the broker `events` has been cut off since 2026-01-01 00:00:0" in text
    assert "failed tries" in text
    assert f"tried again in {error.retry_after * 1000:.0f} ms" in text
    assert text.endswith("the last error was: redis://nowhere cannot be reached")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.retry_after) == (text, error.retry_after)


async def test_the_call_whose_try_opened_it_gets_the_error_that_it_met_as_the_cause():
    async with staged() as stage:
        stage.broker.away = True
        doomed = stage.publish()
        await later(stage.clock, 10)
        with pytest.raises(CircuitOpen) as raised:
            await doomed

    assert type(raised.value.__cause__) is BrokerUnavailable
    assert raised.value.retry_after > 0


async def test_many_failures_at_the_same_moment_do_not_open_it():
    async with staged() as stage:
        stage.broker.away = True
        waiting = [asyncio.create_task(stage.publisher.publish_many([outgoing(n)])) for n in range(50)]
        await later(stage.clock, 0.01)
        assert (stage.status.state, stage.status.failures) == ("closed", 50)

        stage.broker.away = False
        await later(stage.clock, 4)
        await asyncio.gather(*waiting)


async def test_short_timeouts_add_up_to_an_outage():
    async with staged(timeout=0.0) as stage:
        stage.broker.away = True
        for _ in range(5):
            with pytest.raises(BrokerUnavailable) as raised:
                await stage.publisher.publish(outgoing(1))
            assert not isinstance(raised.value, CircuitOpen)
            await later(stage.clock, 1)
        with pytest.raises(CircuitOpen):
            await stage.publisher.publish(outgoing(1))


async def test_failures_that_are_long_past_say_nothing():
    async with staged(timeout=0.0) as stage:
        stage.broker.away = True
        for _ in range(5):
            with pytest.raises(BrokerUnavailable) as raised:
                await stage.publisher.publish(outgoing(1))
            assert not isinstance(raised.value, CircuitOpen)
            await later(stage.clock, 61)
        assert stage.status.state == "closed"


async def test_a_success_in_between_ends_the_row():
    async with staged(timeout=0.0) as stage:
        for _ in range(3):
            stage.broker.away = True
            for _ in range(2):
                with pytest.raises(BrokerUnavailable):
                    await stage.publisher.publish(outgoing(1))
            stage.broker.away = False
            await later(stage.clock, 4)
            await stage.publisher.publish(outgoing(1))
        assert (stage.status.state, stage.status.failures) == ("closed", 0)


async def test_what_the_broker_refuses_does_not_open_it():
    async with staged(Breaker(failures=1, after=0)) as stage:
        stage.broker.error = lambda messages: ValueError("13 is bad luck")
        for _ in range(5):
            with pytest.raises(ValueError, match="bad luck"):
                await stage.publisher.publish(outgoing(13))
        stage.broker.error = lambda messages: None
        with pytest.raises(Unroutable):
            await stage.publisher.publish(outgoing(1, "nobody"), mandatory=True)
        assert stage.status.state == "closed"


async def test_without_one_a_publish_waits_for_its_timeout():
    clock = VirtualClock()
    broker = Unsteady(clock)
    publisher = Publisher(broker, (), clock, 30.0)
    broker.away = True
    waiting = asyncio.create_task(publisher.publish(outgoing(1)))
    await later(clock, 12)
    assert not waiting.done()
    await later(clock, 30)
    with pytest.raises(BrokerUnavailable, match=r"^redis://nowhere cannot be reached$"):
        await waiting
    assert publisher.breaker is None


# -- how it closes -----------------------------------------------------------------------------------------------------


async def test_the_broker_is_tried_again_by_itself_and_ever_more_rarely():
    async with staged() as stage:
        await stage.lose_the_broker()
        tries: list[float] = []
        for _ in range(6):
            due = stage.status.next_try
            assert due is not None
            tries.append(due - stage.clock.time())
            before = stage.broker.tries
            await later(stage.clock, tries[-1])
            assert stage.broker.tries == before + 1

        for wait, most in zip(tries, (1, 2, 4, 8, 8, 8), strict=True):
            assert 0 < wait <= most
        assert tries[-1] >= 4


async def test_it_closes_when_the_broker_is_back_though_nobody_publishes():
    async with staged() as stage:
        await stage.lose_the_broker()
        stage.broker.away = False
        await later(stage.clock, 8)

        assert stage.status.state == "closed"
        assert stage.status.next_try is None
        await stage.publisher.publish(outgoing(8))
        assert stage.broker.bodies == [b"8"]
        assert stage.broker.unrouted.counts == {}, "a probe is nobody's lost message"


async def test_a_refusal_is_an_answer():
    async with staged() as stage:
        await stage.lose_the_broker()
        stage.broker.away = False
        stage.broker.error = lambda messages: PermissionError("not this topic")
        await later(stage.clock, 8)
        assert stage.status.state == "closed"


async def test_while_the_probe_is_under_way_callers_are_still_refused():
    async with staged() as stage:
        await stage.lose_the_broker()
        stage.broker.may_answer.clear()
        stage.broker.away = False
        await later(stage.clock, 1)
        assert stage.status.state == "half-open"
        with pytest.raises(CircuitOpen, match="tried again right now"):
            await stage.publisher.publish(outgoing(1))
        stage.broker.may_answer.set()
        await later(stage.clock, 0)
        await stage.publisher.publish(outgoing(2))


async def test_a_probe_that_deceived_costs_one_failure_and_no_second_wait():
    """As on a disk that is full, which takes what is empty."""
    async with staged() as stage:
        await stage.lose_the_broker()
        stage.broker.away = False
        stage.broker.error = lambda messages: (
            None if messages[0].topic == "$probe" else BrokerUnavailable("the disk is full")
        )
        await later(stage.clock, 8)
        assert stage.status.state == "closed"

        with pytest.raises(CircuitOpen, match="the disk is full"):
            await stage.publisher.publish(outgoing(1))
        assert stage.status.opened == 2


async def test_a_late_answer_to_a_try_from_before_closes_it_too():
    async with staged() as stage:
        stage.broker.may_answer.clear()
        late = asyncio.create_task(stage.publisher.publish_many([outgoing(1)]))
        await later(stage.clock, 0)
        await stage.lose_the_broker()
        stage.broker.away = False
        stage.broker.may_answer.set()
        await late
        assert stage.status.state == "closed"
        await stage.publisher.publish(outgoing(2))


async def test_closing_ends_the_probing():
    async with staged() as stage:
        await stage.lose_the_broker()
    assert stage.clock.next_due() is None


# -- what it tells -----------------------------------------------------------------------------------------------------


async def test_its_status_says_since_when_why_and_how_often():
    async with staged() as stage:
        began = stage.clock.time()
        assert stage.status == BreakerStatus("events", "closed", began, 0, None, None, None, 0, 0)
        await stage.lose_the_broker()
        cut_off = stage.status.since
        with pytest.raises(CircuitOpen):
            await stage.publisher.publish(outgoing(1))
        await later(stage.clock, 20)
        status = stage.status
        assert (status.broker, status.state, status.opened, status.refused) == ("events", "open", 1, 1)
        assert status.since == cut_off
        assert status.failures > 3
        assert status.last_error == "redis://nowhere cannot be reached"
        assert status.last_error_at is not None
        assert began < cut_off < status.last_error_at <= stage.clock.time()

        stage.broker.away = False
        await later(stage.clock, 8)
        await stage.publisher.publish(outgoing(1))
        status = stage.status
        assert (status.state, status.failures, status.opened) == ("closed", 0, 1)
        assert status.since > cut_off
        assert status.last_error == "redis://nowhere cannot be reached"


async def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "carteiro.breaker")
    async with staged() as stage:
        await stage.lose_the_broker()
        for number in range(20):
            with pytest.raises(CircuitOpen):
                await stage.publisher.publish(outgoing(number))
        stage.broker.away = False
        await later(stage.clock, 2)

    lines = [record.getMessage() for record in caplog.records if record.name == "carteiro.breaker"]
    assert [line.partition(":")[0] for line in lines] == [
        "publishing to the broker `events` is cut off",
        "the broker `events`, to which publishing is cut off, is tried again",
        "publishing to the broker `events` goes on",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"failures": 0}, "failures=0"),
        ({"cooldown": 0}, "the cooldown must be over 0"),
        ({"cooldown": 20}, "no longer than the longest"),
        ({"after": "soon"}, "is no length of time"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, words: str):
    with pytest.raises(ConfigurationError, match=words):
        Breaker(**options)


# -- an app's ----------------------------------------------------------------------------------------------------------


async def test_each_broker_of_an_app_has_its_own_and_requests_stand_behind_it_too():
    app = Carteiro("shop", brokers={"default": "memory://", "events": "memory://"}, clock=VirtualClock())
    app.subscriber("orders", broker="events")(double)
    async with app:
        events, default = app.connections["events"], app.connections["default"]
        assert events.publisher.breaker is not None
        assert default.publisher.breaker is not None
        assert (events.publisher.breaker.broker, default.publisher.breaker.broker) == ("events", "default")


async def test_of_many_requests_to_a_broker_that_hangs_only_the_first_ones_wait(monkeypatch: pytest.MonkeyPatch):
    clock = VirtualClock()
    app = Carteiro("shop", "memory://", clock=clock)
    tries = 0

    async def hang(*_: object) -> None:
        nonlocal tries
        tries += 1
        await clock.sleep(4)
        raise BrokerUnavailable("no answer for 4 s")

    async with app:
        monkeypatch.setattr(app.connection.broker, "declare", hang)
        monkeypatch.setattr(app.connection.broker, "publish", hang)
        asked = [asyncio.create_task(app.request("orders", number)) for number in range(50)]
        while not asked[0].done():
            await later(clock, 0.1)
        assert tries == 3
        errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(error) for error in errors} == {CircuitOpen}


async def test_an_app_can_do_without():
    async with Carteiro("shop", "memory://", breaker=None) as app:
        assert app.connection.publisher.breaker is None


async def double(number: int) -> int:
    return 2 * number
