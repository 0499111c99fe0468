"""RabbitMQ: one server for all, started on a free port, and a virtual host of it each."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from benchmarks.processes import Failed
from benchmarks.systems.base import MESSAGES, Bounds, Contestant, Role, carteiro, peer
from tests.servers.process import ServerDown
from tests.servers.rabbitmq import RabbitServer

BARE = ("python", "-m", "benchmarks.contestants.bare_worker")


class RabbitMQ:
    title = "RabbitMQ"
    place = "The server works on the same cores; a queue is one process of it, and one log takes what all queues get."
    safety = (
        "All are on durable quorum queues of one server, which confirm each publish when the disk has synced. "
        "FastStream, Celery and Taskiq declare them; Dramatiq declares no kind and gets its virtual host's default."
    )
    measurements = MESSAGES
    contestants = (
        carteiro(40_000, {"one": 1_000, "concurrent": 8_000, "many": 15_000}),
        Contestant(
            "bare loop", "bare_rabbitmq", (*BARE, "handle"), Role.BARE, 24_000,
            {"one": 1_000, "concurrent": 8_000, "many": 12_000},
        ),
        Contestant("its calls alone", "bare_rabbitmq", (*BARE, "calls"), Role.CALLS, 26_000, {}),
        peer(
            "FastStream", "faststream run {module}:app", 1_700, 550, 2_500, "faststream[rabbit,cli]==0.7.8",
            module="faststream_rabbit_app",
        ),
        peer(
            "Celery", "celery -A {module} worker -P solo --loglevel WARNING --without-gossip --without-mingle",
            1_600, 800, 800, "celery[redis]==5.7.0",
        ),
        peer(
            "Dramatiq", "dramatiq {module} -p 1 -t 4", 3_000, 1_000, 1_000, "dramatiq[rabbitmq,redis]==2.2.1",
            dramatiq_queue_prefetch="256",
        ),
        peer(
            "Taskiq", "taskiq worker {module}:queue --workers 1 --log-level WARNING", 1_300, 700, 3_500,
            "taskiq==0.13.0", "taskiq-aio-pika==0.6.1", "taskiq-redis==1.2.4",
        ),
    )  # fmt: skip
    # On a busy machine a million took two minutes and a half to publish.
    bounds = Bounds(handled_over_peer=3, bulk_over_peer=None, p50_over_peer=1, memory=60, backlog=300_000)

    def __enter__(self) -> RabbitMQ:
        try:
            self._server = RabbitServer().__enter__()
        except LookupError as error:
            raise Failed(f"{error}; or leave it out with --system sqlite,redis") from None
        except ServerDown as error:
            raise Failed(str(error)) from error
        self._numbers = itertools.count()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.close()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        name = f"bench{next(self._numbers)}"
        self._server.evaluate(
            f'rabbit_vhost:add(<<"{name}">>, #{{default_queue_type => <<"quorum">>}}, <<"benchmarks">>)'
        )
        self._server.allow("guest", vhost=name)
        try:
            yield self._server.url_with(vhost=name)
        finally:
            self._server.evaluate(f'rabbit_vhost:delete(<<"{name}">>, <<"benchmarks">>)')

    def describe(self) -> Mapping[str, str]:
        erlang = self._server.evaluate("erlang:system_info(otp_release)").strip('"')
        return {
            "rabbitmq-server": f"{'.'.join(map(str, self._server.program.version))} on Erlang {erlang}, one node",
            "client libraries": f"pamqp {version('pamqp')} (carteiro), pika {version('pika')} (bare loop)",
            "peers": ", ".join(one for contestant in self.contestants for one in contestant.requires),
        }
