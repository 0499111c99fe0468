"""What a service says of its health: `up`, `degraded` or `down`, why, and how soon, whatever its brokers do."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from carteiro import BrokerUnavailable, Carteiro, ConfigurationError, Reject, Retry, constant
from carteiro.backends.memory import MemoryBackend, MemoryConsumer
from carteiro.backends.memory.broker import MemoryBroker
from carteiro.backends.memory.state import State
from carteiro.engine.worker import Worker
from carteiro.errors import BrokerError, UnsupportedFeature
from carteiro.message import Delivery, Outgoing, Subscription
from carteiro.ports.broker import GroupStatus
from carteiro.ports.clock import Clock
from carteiro.testing.clock import VirtualClock
from carteiro.web import health, health_routes
from tests.unit.outage import later, until

AWAY = BrokerUnavailable("`redis://shop:hunter2@db` cannot be reached")


class Moody(MemoryBroker):
    """A broker that can be lost, and be slow to tell its counts. `mute`: it delivers nothing, and no error either."""

    def __init__(self, clock: Clock) -> None:
        self.state = State(clock)
        super().__init__(self.state, MemoryBackend(self.state, "memory://").store)
        self.inspected = 0
        self.mute = False
        self.may_tell = asyncio.Event()
        self.may_tell.set()
        self.refusal: Exception | None = None
        """In place of its counts."""
        self.error: Exception | None = None
        self._lost = asyncio.Event()

    def lose(self, error: Exception = AWAY) -> None:
        self.error = error
        self._lost.set()

    def bring_back(self) -> None:
        self.error = None
        self._lost.clear()

    async def groups(self) -> Sequence[GroupStatus]:
        self.inspected += 1
        await self.may_tell.wait()
        if error := self.error or self.refusal:
            raise error
        return await super().groups()

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        if self.error is not None:
            raise self.error
        return await super().publish(messages)

    def consume(self, subscriptions: Sequence[Subscription]) -> MemoryConsumer:
        return MoodyConsumer(self, subscriptions)

    async def unless_lost(self, fetch: Coroutine[Any, Any, Sequence[Delivery]]) -> Sequence[Delivery]:
        fetching, lost = asyncio.ensure_future(fetch), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((fetching, lost), return_when=asyncio.FIRST_COMPLETED)
            if self.error is not None:
                raise self.error
            return await fetching
        finally:
            fetching.cancel()
            lost.cancel()


class MoodyConsumer(MemoryConsumer):
    def __init__(self, broker: Moody, subscriptions: Sequence[Subscription]) -> None:
        super().__init__(broker.state, subscriptions)
        self._broker = broker

    async def fetch(self, room: Mapping[Subscription, int]) -> Sequence[Delivery]:
        return await self._broker.unless_lost(super().fetch({} if self._broker.mute else room))


class Backend(MemoryBackend):
    def __init__(self, clock: Clock) -> None:
        self.moody = Moody(clock)
        super().__init__(self.moody.state, "memory://")
        self.broker = self.moody


class Service:
    """An app on moody brokers, and its health as HTTP gives it."""

    def __init__(self, *names: str, **options: Any) -> None:
        self.clock = VirtualClock()
        backends = {name: Backend(self.clock) for name in names or ("default",)}
        self.brokers = {name: backend.moody for name, backend in backends.items()}
        self.broker = self.brokers["default"]
        self.app = Carteiro("shop", brokers=backends, clock=self.clock, **options)
        self.routes = health(self.app, stuck_after="30s")

    async def get(self, path: str = "/health/queue") -> tuple[int, Any]:
        api = FastAPI()
        api.include_router(self.routes)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://shop") as client:
            answer = await client.get(path)
            return answer.status_code, answer.json()

    async def health(self) -> Any:
        return (await self.get())[1]

    async def queue(self) -> Any:
        (queue,) = (await self.health())["queues"]
        return queue

    async def probes(self) -> tuple[int, int]:
        """The codes of live and ready."""
        return (await self.get("/health/live"))[0], (await self.get("/health/ready"))[0]


def handling(service: Service, **options: Any) -> list[int]:
    """Have it handle `orders`: those below zero fail, and those of a hundred and more wait for ever."""
    handled: list[int] = []

    @service.app.subscriber("orders", retry=Retry(attempts=2, backoff=constant(60)), **options)
    async def handle(order: int) -> None:
        if order < 0:
            raise Reject("amqp://shop:hunter2@mq said no") if order == -1 else ValueError(f"order {order}")
        if order >= 100:
            await asyncio.get_running_loop().create_future()
        handled.append(order)

    return handled


# -- all is well -------------------------------------------------------------------------------------------------------


async def test_a_service_that_works_says_what_each_queue_has():
    service = Service()
    handling(service)
    async with service.app.lifespan():
        await service.app.publish("orders", 1)
        await service.app.publish("orders", 2, delay=60)
        await later(service.clock, 5)
        code, said = await service.get()

    assert (code, said["status"], said["reasons"]) == (200, "up", [])
    (broker,), (queue,) = said["brokers"], said["queues"]
    assert (broker["name"], broker["system"], broker["status"]) == ("default", "memory", "up")
    assert (broker["breaker"]["state"], broker["outbox"]) == ("closed", None)
    assert (queue["topic"], queue["group"], queue["status"], queue["consumes"]) == ("orders", "shop", "up", True)
    assert queue["depth"] == {"waiting": 0, "delayed": 1, "retrying": 0, "in_flight": 0, "dead": 0}
    assert (queue["consumers"], queue["oldest"]) == (1, 5.0)
    assert (queue["handling"], queue["handled"], queue["last_handled"]) == (0, 1, "2026-01-01T00:00:00Z")
    assert queue["last_error"] is None


async def test_the_last_failure_of_a_queue_is_told_and_stays_until_the_next():
    service = Service()
    handling(service)
    async with service.app.lifespan():
        await service.app.publish("orders", -7)
        await later(service.clock, 10)
        failed = await service.queue()
        await later(service.clock, 60)
        given_up = await service.queue()

    at = "2026-01-01T00:00:00Z"
    assert failed["last_error"] == {"type": "ValueError", "text": "order -7", "attempt": 1, "at": at}
    assert (failed["depth"]["retrying"], failed["depth"]["dead"]) == (1, 0)
    assert given_up["last_error"]["attempt"] == 2
    assert given_up["last_error"]["at"] == "2026-01-01T00:01:00Z"
    assert (given_up["depth"]["retrying"], given_up["depth"]["dead"]) == (0, 1)
    assert (failed["status"], given_up["status"]) == ("up", "up")  # a message failed, and the queue goes on


async def test_what_is_dropped_for_want_of_dead_letters_is_told_too():
    service = Service()
    handling(service, dead_letters=False)
    async with service.app.lifespan():
        await service.app.publish("orders", -1)
        await later(service.clock, 1)
        queue = await service.queue()
    assert (queue["last_error"]["type"], queue["depth"]["dead"]) == ("Reject", 0)


async def test_no_password_is_shown():
    service = Service()
    handling(service)
    async with service.app.lifespan():
        await service.app.publish("orders", -1)
        await later(service.clock, 1)
        service.broker.lose()
        await later(service.clock, 1)
        said = str(await service.health())
    assert "amqp://shop:***@mq said no" in said
    assert "redis://shop:***@db" in said
    assert "hunter2" not in said


# -- a broker that is away ---------------------------------------------------------------------------------------------


async def test_a_service_whose_only_broker_is_away_is_down_and_alive_and_is_well_again_when_it_is_back():
    service = Service()
    handled = handling(service)
    async with service.app.lifespan():
        assert await service.probes() == (200, 200)
        service.broker.lose()
        await later(service.clock, 1)
        code, said = await service.get()
        assert (code, said["status"], said["queues"][0]["status"]) == (503, "down", "down")
        assert said["reasons"] == ["broker `default`: it cannot be reached: `redis://shop:***@db` cannot be reached"]
        assert said["brokers"][0]["trouble"] == "`redis://shop:***@db` cannot be reached"
        assert said["queues"][0]["depth"]["waiting"] is None
        assert await service.probes() == (200, 503)

        service.broker.bring_back()
        await later(service.clock, 1)
        said = await service.health()
        assert said["status"] == "degraded"  # it answers, and the worker has not come back yet
        assert "the worker goes on trying" in said["queues"][0]["reasons"][0]
        await service.app.publish("orders", 1)
        await later(service.clock, 20)
        assert (await service.health())["status"] == "up"
        assert handled == [1]
        assert await service.probes() == (200, 200)


async def test_with_an_outbox_a_broker_that_is_away_degrades_a_service_and_no_more(tmp_path: Path):
    service = Service(outbox=tmp_path / "outbox.db")
    handling(service)
    async with service.app.lifespan(workers=False):
        service.broker.lose()
        publishing = asyncio.create_task(service.app.publish("orders", 1))
        await until(publishing.done, service.clock)
        said = await service.health()
        assert (said["status"], said["brokers"][0]["status"]) == ("degraded", "degraded")
        assert said["brokers"][0]["outbox"]["waiting"] == 1
        assert any("messages wait in the outbox (1, the oldest for" in reason for reason in said["reasons"])
        assert said["queues"][0]["status"] == "degraded"
        assert "kept in the outbox" in said["queues"][0]["reasons"][0]
        assert await service.probes() == (200, 200)


async def test_one_broker_of_two_that_is_away_degrades_the_service():
    service = Service("default", "events")
    handling(service)
    service.app.subscriber("moves", broker="events")(nothing)
    async with service.app.lifespan():
        service.brokers["events"].lose()
        await later(service.clock, 1)
        said = await service.health()
        assert said["status"] == "degraded"
        assert [one["status"] for one in said["brokers"]] == ["up", "down"]
        assert [one["status"] for one in said["queues"]] == ["up", "down"]
        assert await service.probes() == (200, 200)


async def test_publishing_that_is_cut_off_is_told_with_since_when_and_why():
    service = Service()
    handling(service)
    async with service.app.lifespan(workers=False):
        service.broker.lose()
        refused = asyncio.create_task(service.app.publish("orders", 1))
        await until(refused.done, service.clock)
        assert isinstance(refused.exception(), BrokerUnavailable)
        said = await service.health()
    (broker,), (queue,) = said["brokers"], said["queues"]
    assert broker["breaker"]["state"] == "open"
    assert broker["breaker"]["last_error"] == "`redis://shop:***@db` cannot be reached"
    assert any("publishing is cut off since 2026-01-01 00:00:" in reason for reason in broker["reasons"])
    assert (queue["status"], queue["reasons"]) == ("down", ["publishing is cut off"])


# -- a broker that is slow, or says no ---------------------------------------------------------------------------------


async def test_a_broker_that_does_not_answer_keeps_nobody_waiting():
    service = Service()
    handling(service)
    async with service.app.lifespan():
        await service.get()
        service.broker.may_tell.clear()
        await later(service.clock, 2)
        assert (await answered(service))["status"] == "up"  # it may be slow only
        await later(service.clock, 6)
        said = await answered(service)
        assert (said["status"], said["queues"][0]["status"]) == ("degraded", "degraded")
        assert "it has not answered for 7.0 s" in said["reasons"][0]
        service.broker.may_tell.set()
        await later(service.clock, 1)
        assert (await service.health())["status"] == "up"


async def test_a_look_that_never_ends_is_begun_anew():
    service = Service()
    handling(service)
    async with service.app.lifespan():
        service.broker.may_tell.clear()
        await answered(service)
        service.broker.may_tell = asyncio.Event()
        service.broker.may_tell.set()
        await later(service.clock, 10)
        assert (await answered(service))["status"] == "degraded"
        await later(service.clock, 10)
        assert (await service.health())["status"] == "up"
        assert service.broker.inspected == 2


async def test_however_many_ask_one_look_serves_them_for_a_second():
    service = Service()
    handling(service)
    async with service.app.lifespan():
        await asyncio.gather(*(service.get(path) for path in ("/health/queue", "/health/ready") for _ in range(10)))
        await service.get()
        assert service.broker.inspected == 1
        await later(service.clock, 1)
        await service.get()
        assert service.broker.inspected == 2
        await service.get("/health/live")
        assert service.broker.inspected == 2


async def test_counts_that_the_broker_refuses_degrade_it_with_its_own_words():
    service = Service()
    handling(service)
    service.broker.refusal = BrokerError("this user may not look")
    async with service.app.lifespan():
        said = await service.health()
        assert said["status"] == "degraded"
        assert "BrokerError: this user may not look" in said["reasons"][0]


async def test_a_broker_that_has_no_way_to_tell_its_counts_is_well():
    service = Service()
    handling(service)
    service.broker.refusal = UnsupportedFeature("no inspection")
    async with service.app.lifespan():
        assert (await service.health())["status"] == "up"
        assert (await service.queue())["depth"]["waiting"] is None


# -- a worker that gets nothing ----------------------------------------------------------------------------------------


async def test_a_consumer_to_which_nothing_comes_though_messages_wait_is_stuck():
    service = Service()
    handled = handling(service)
    async with service.app.lifespan():
        service.broker.mute = True
        await service.app.publish("orders", 1)
        await later(service.clock, 1)
        assert handled == [1]  # a fetch that was under way
        await service.app.publish("orders", 2)
        await later(service.clock, 100)
        assert (await service.queue())["status"] == "up"  # seen for the first time
        await later(service.clock, 31)
        said = await service.health()
        assert (said["status"], said["queues"][0]["status"]) == ("degraded", "degraded")
        assert said["reasons"] == [
            "orders [shop]: stuck: messages wait (1), and for 31.0 s none came in, though there is room"
        ]
        assert await service.probes() == (200, 200)


async def test_a_consumer_whose_hands_are_full_is_not_stuck():
    service = Service()
    handling(service, concurrency=1, prefetch=0)
    async with service.app.lifespan():
        await service.app.publish_many("orders", [100, 1])
        await later(service.clock, 1)
        await service.get()
        await later(service.clock, 100)
        queue = await service.queue()
        assert (queue["status"], queue["handling"], queue["depth"]["waiting"]) == ("up", 1, 1)
        service.app.stop()
        service.app.stop()


async def test_a_consumer_that_waits_for_its_rate_limit_is_not_stuck():
    service = Service()
    handling(service, rate_limit="1/h")
    async with service.app.lifespan():
        await service.app.publish_many("orders", [1, 2, 3])
        await later(service.clock, 1)
        await service.get()
        await later(service.clock, 100)
        queue = await service.queue()
        assert (queue["status"], queue["handled"]) == ("up", 1)


# -- a worker that is not there ----------------------------------------------------------------------------------------


async def test_a_service_that_is_not_connected_is_alive_and_not_ready():
    service = Service()
    handling(service)
    assert await service.probes() == (200, 503)
    code, said = await service.get()
    assert (code, said["status"]) == (503, "down")
    assert "is not connected" in said["reasons"][0]


async def test_a_worker_that_starts_is_not_ready_before_it_consumes():
    service = Service()
    may_start = asyncio.Event()

    @contextlib.asynccontextmanager
    async def resources(app: Carteiro):
        await may_start.wait()
        yield

    service.app = Carteiro("shop", service.app.open_backend(), clock=service.clock, lifespan=resources)
    service.routes = health(service.app)
    handling(service)
    running = asyncio.create_task(service.app.run())
    await later(service.clock, 0)
    assert await service.get("/health/ready") == (503, {"status": "down", "reasons": ["the worker is starting"]})
    assert (await service.get("/health/live"))[0] == 200
    may_start.set()
    await service.app.ready()
    assert await service.probes() == (200, 200)
    service.app.stop()
    await running
    assert (await service.get("/health/live"))[0] == 200


async def test_a_service_that_shuts_down_is_not_ready_while_its_handlers_end():
    service = Service()
    handling(service)
    running = asyncio.create_task(service.app.run())
    await service.app.ready()
    await service.app.publish("orders", 100)
    await later(service.clock, 1)
    service.app.stop()
    await later(service.clock, 1)
    code, said = await service.get("/health/ready")
    assert (code, said["reasons"]) == (503, ["the worker is stopping"])
    assert (await service.get("/health/live"))[0] == 200
    service.app.stop()
    await later(service.clock, 1)
    await running


async def test_a_worker_that_has_died_fails_liveness_with_what_it_died_of(monkeypatch: pytest.MonkeyPatch):
    service = Service()
    handling(service)
    breaks = asyncio.Event()

    async def until_it_breaks(worker: Worker) -> None:
        await breaks.wait()
        raise RuntimeError("the intake broke")

    monkeypatch.setattr(Worker, "run_until_stopped", until_it_breaks)
    died = {"status": "down", "reasons": ["the worker has died: RuntimeError: the intake broke"]}

    async def live_on() -> None:
        async with service.app.lifespan():
            breaks.set()
            await later(service.clock, 1)
            assert await service.get("/health/live") == (503, died)
            assert await service.get("/health/ready") == (503, died)
            code, said = await service.get()
            assert (code, said["queues"][0]["status"], said["queues"][0]["reasons"]) == (503, "down", died["reasons"])
            assert said["brokers"][0]["status"] == "up"

    with pytest.raises(RuntimeError, match="the intake broke"):
        await live_on()


# -- which queues ------------------------------------------------------------------------------------------------------


async def test_what_others_of_the_app_handle_is_shown_as_theirs():
    service = Service()
    handling(service)
    service.app.subscriber("moves")(nothing)
    async with service.app.lifespan(only=["moves"]):
        said = await service.health()
        assert [(one["topic"], one["consumes"], one["handled"]) for one in said["queues"]] == [
            ("orders", False, None),
            ("moves", True, 0),
        ]
        assert said["status"] == "up"


async def test_a_service_that_only_publishes_is_ready_once_it_is_connected():
    service = Service()
    handling(service)
    service.app.subscriber("news", group=None)(nothing)
    async with service.app.lifespan(workers=False):
        assert await service.probes() == (200, 200)
        assert [one["topic"] for one in (await service.health())["queues"]] == ["orders"]  # no broadcast is for it


async def test_the_queues_of_a_file_are_shown_with_the_groups_that_get_them(tmp_path: Path):
    (tmp_path / "queues.yaml").write_text(
        "app: shop\ndefaults: {type: memory}\nqueues: [{name: mine}, {name: theirs}, {name: logs.web}, {name: nobodys}]"
    )
    service = Service()
    service.app = Carteiro.from_config(
        tmp_path / "queues.yaml", brokers={"default": service.app.open_backend()}, clock=service.clock
    )
    service.routes = health(service.app)
    service.app.subscriber("mine")(nothing)
    async with service.app.lifespan():
        await service.broker.declare([Subscription("theirs", "billing"), Subscription("logs.*", "audit")])
        said = await service.health()
    assert [(one["topic"], one["group"], one["consumes"], one["status"]) for one in said["queues"]] == [
        ("mine", "shop", True, "up"),
        ("theirs", "billing", False, "up"),
        ("logs.*", "audit", False, "up"),
        ("nobodys", None, False, "degraded"),
    ]
    assert said["reasons"] == ["nobodys: no group gets what is published to it: start a service that subscribes"]


# -- its form ----------------------------------------------------------------------------------------------------------


async def test_openapi_shows_the_answers_with_examples():
    service = Service()
    api = FastAPI()
    api.include_router(service.routes)
    document = api.openapi()
    assert list(document["paths"]) == ["/health/queue", "/health/live", "/health/ready"]
    for path, model in (("queue", "Health"), ("live", "Probe"), ("ready", "Probe")):
        answers = document["paths"][f"/health/{path}"]["get"]["responses"]
        assert set(answers) == {"200", "503"}
        for answer in answers.values():
            assert answer["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{model}"}
    queue = document["components"]["schemas"]["QueueHealth"]["properties"]
    assert queue["status"]["enum"] == ["up", "degraded", "down"]
    assert queue["topic"]["examples"] == ["orders.placed"]


async def test_starlette_has_the_same_routes():
    service = Service()
    handling(service)
    api = Starlette(routes=health_routes(service.app))
    async with service.app.lifespan():
        client = httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://shop")
        async with client:
            for path in ("/health/queue", "/health/live", "/health/ready"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["status"]) == (200, "up")
                assert answer.headers["cache-control"] == "no-store"


def test_without_fastapi_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'carteiro\[web\]'.*health_routes"):
        health(Carteiro("shop", "memory://"))


async def nothing(body: object) -> None: ...


async def answered(service: Service) -> Any:
    """What health says once its patience is over: a broker that hangs must not keep it waiting."""
    asking = asyncio.create_task(service.health())
    await later(service.clock, 0.5)
    await until(asking.done)
    return asking.result()
