"""What cannot be, said as a user needs to hear it: the thing, the place, and the way out."""

import asyncio
import functools
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from carteiro import (
    Batch,
    Carteiro,
    ConfigurationError,
    Idempotency,
    InvalidTopic,
    Message,
    Retry,
    Router,
    UnsupportedFeature,
    exponential,
)
from carteiro.backends.memory import MemoryBackend
from carteiro.backends.memory.state import State
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.ports.features import Capability, Features, Support


async def take(message: Message) -> None: ...


async def take_more(message: Message) -> None: ...


def shop() -> Carteiro:
    return Carteiro("shop", "memory://")


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        pytest.param(lambda app: app.subscriber(""), "a topic needs a name: dotted words", id="no topic"),
        pytest.param(lambda app: app.subscriber("two words"), "`two words` is not a word", id="a space"),
        pytest.param(lambda app: app.subscriber("orders..placed"), "none empty", id="an empty word"),
        pytest.param(lambda app: app.subscriber("orders.pl*"), r"stand alone", id="half a wildcard"),
        pytest.param(lambda app: app.subscriber("o" * 250), "longer than 249 bytes", id="a long name"),
        pytest.param(
            lambda app: app.publisher("orders.*"), "is a pattern: one can subscribe to it", id="publishing to a pattern"
        ),
        pytest.param(lambda app: app.subscriber("orders.*", retain="7d"), "is a pattern", id="retaining a pattern"),
    ],
)
def test_a_name_that_is_no_topic(declare: Callable[[Carteiro], Any], words: str):
    with pytest.raises(InvalidTopic, match=words):
        declare(shop())(take)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, r"concurrency=0 on `orders`: at least 1"),
        ({"prefetch": -1}, r"prefetch=-1 on `orders`: not negative"),
        ({"runs_in": "moon"}, r'runs_in="moon" on `orders`: it is "loop", "thread" or "process"'),
        ({"rate_limit": "fast"}, r"rate limit `fast`: write it as 100/m"),
        ({"rate_limit": "0/s"}, r"rate limit `0/s`: write it as 100/m"),
        ({"timeout": "soon"}, r"`soon` is no length of time: give seconds, a timedelta, or text such as"),
        ({"retain": "for ever"}, r"`for ever` is no length of time"),
        ({"start": "yesterday"}, r"""start='yesterday': it is "earliest", "latest" or an aware datetime"""),
        ({"start": datetime(2026, 11, 1)}, r"has no time zone: give an aware datetime"),  # noqa: DTZ001
        ({"lease": 0}, r"lease=0 on `orders`: it must be over 0 seconds"),
        ({"timeout": 0}, r"timeout=0 on `orders`: it must be over 0 seconds"),
        ({"retry": 3}, r"retry=3 on `orders`: write retry=Retry\(attempts=3\)"),
        ({"batch": 10}, r"batch=10 on `orders`: write batch=Batch\(size=100\)"),
        ({"idempotency": "id"}, r"""idempotency='id' on `orders`: write idempotency=Idempotency\(key="order_id"\)"""),
        ({"batch": Batch(), "idempotency": Idempotency(key="id")}, r"`orders`: a batch cannot have idempotency"),
    ],
)
def test_an_option_that_cannot_be(options: dict[str, Any], words: str):
    with pytest.raises(ConfigurationError, match=words):
        shop().subscriber("orders", **options)(take)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Retry(attempts=0), r"Retry\(attempts=0\): the first attempt counts, so at least 1"),
        (lambda: Retry(on=ValueError), r"Retry\(on=…\) takes a tuple of exception types"),  # type: ignore[arg-type]
        (lambda: Retry(not_on=("no",)), r"Retry\(not_on=…\) takes a tuple of exception types"),  # type: ignore[arg-type]
        (lambda: Retry(max_age="old"), r"`old` is no length of time"),
        (lambda: exponential(0), r"the base must be over 0"),
        (lambda: exponential(1, factor=0.5), r"the factor at least 1"),
        (lambda: Batch(size=0), r"at least 1 message"),
        (lambda: Batch(size="10"), r"Batch\(size='10', wait=0.1\): at least 1 message"),  # type: ignore[arg-type]
        (lambda: Batch(wait="soon"), r"`soon` is no length of time"),
        (lambda: Retry(attempts="3"), r"Retry\(attempts='3'\): the first"),  # type: ignore[arg-type]
        (lambda: Idempotency(key="id", ttl=0), r"must be over 0 seconds"),
        (lambda: Carteiro("my shop"), r"an app needs a name without spaces, not 'my shop'"),
        (lambda: Carteiro(""), r"an app needs a name"),
        (lambda: Carteiro("shop", codec="pickle"), r'codec="pickle": it is "json" or "msgpack"'),  # type: ignore[arg-type]
        (lambda: Carteiro("shop", lease=0), r"lease= must be over 0 seconds"),
    ],
)
def test_an_option_object_or_an_app_that_cannot_be(make: Callable[[], Any], words: str):
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_two_handlers_of_one_group_must_differ_by_type():
    app = shop()
    app.subscriber("orders")(take)
    app.subscriber("orders")(take_more)

    with pytest.raises(ConfigurationError) as raised:
        app.declared()

    text = str(raised.value)
    assert "`take` (test_app_errors.py:" in text
    assert "`take_more` (test_app_errors.py:" in text
    assert "are in one group, `shop`: which of them is to handle a message?" in text
    assert "Give one another group= (each gets every message) or another type=" in text


def test_handlers_that_share_a_subscription_by_type_must_agree_on_how_it_runs():
    app = shop()
    app.subscriber("orders", type="a", concurrency=2)(take)
    app.subscriber("orders", type="b", concurrency=3)(take_more)

    with pytest.raises(ConfigurationError, match="share one subscription, so concurrency= must be the same on both"):
        app.declared()


def test_a_batch_does_not_share_its_subscription():
    app = shop()
    app.subscriber("orders", type="a", batch=Batch())(take)
    app.subscriber("orders", type="b", batch=Batch())(take_more)

    with pytest.raises(ConfigurationError, match="a batch goes to one handler"):
        app.declared()


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return await function(*args)

    return wrapper


@pytest.mark.parametrize("publisher_first", [True, False])
async def test_a_publisher_on_a_function_that_is_no_subscriber(publisher_first: bool):
    app = shop()
    inner, outer = app.subscriber("orders"), app.publisher("invoices")
    if publisher_first:
        inner, outer = outer, inner
    outer(wrapped(inner(take)))

    with pytest.raises(
        ConfigurationError,
        match=r"`take` \(.*test_app_errors\.py:\d+\) has a `@publisher` and is no subscriber of app `shop`, so that "
        "nothing would be published: put it next to `@subscriber`, with no other decorator between them",
    ):
        async with app:
            pass


def test_a_router_with_a_bad_prefix_says_so_where_it_is_used():
    with pytest.raises(InvalidTopic, match=r"`my orders\.placed` is no topic"):
        Router(prefix="my orders.").subscriber("placed")


async def test_an_app_without_subscribers_has_nothing_to_run():
    with pytest.raises(ConfigurationError, match="app `shop` has no subscribers: there is nothing to run"):
        await shop().run()


async def test_an_only_that_matches_nothing_is_named():
    app = shop()
    app.subscriber("orders")(take)

    with pytest.raises(ConfigurationError, match="app `shop` has no subscribers among ordres, stok"):
        await app.run(only=["ordres", "stok"])


async def test_an_app_runs_once_in_a_process():
    app = shop()
    app.subscriber("orders")(take)
    running = asyncio.create_task(app.run())
    await app.ready()

    with pytest.raises(ConfigurationError, match="app `shop` is running already in this process"):
        await app.run()

    app.stop()
    await running


@pytest.mark.parametrize(
    ("options", "capability", "how"),
    [
        ({"ordered": True}, Capability.ORDERED, "order by key"),
        ({"group": None}, Capability.BROADCAST, "broadcast"),
        ({"retry": Retry(attempts=2)}, Capability.RETRY, "delayed retry"),
        ({"start": "earliest"}, Capability.RETENTION, "retention and rewind"),
    ],
)
async def test_a_handler_that_needs_what_its_broker_lacks_fails_at_start_and_names_both(
    options: dict[str, Any], capability: Capability, how: str
):
    backend = MemoryBackend(State(SYSTEM_CLOCK), "memory://")
    lacking = {**backend.broker.features.support, capability: Support("unsupported", "it is a pigeon")}
    backend.broker.features = Features("pigeon", lacking)
    app = Carteiro("shop", backend)
    app.subscriber("orders", **options)(take)

    with pytest.raises(
        UnsupportedFeature,
        match=rf"subscriber `take` \(test_app_errors\.py:\d+\) of `orders` needs {how}, which the pigeon broker "
        r"does not have: it is a pigeon",
    ):
        await app.run()
