"""Tasks with results on Redis: the server of `redis.py`, and other programs on it."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.systems.base import Bounds, Contestant, Role
from benchmarks.systems.redis import Redis


def _peer(
    name: str, command: str, handles: int, publishes: Mapping[str, int], *requires: str, composes: bool = False
) -> Contestant:
    """In the environment of its other program."""
    module, environment = f"{name.lower()}_tasks", f"{name.lower()}_app"
    worker = command.format(module=f"benchmarks.contestants.{module}").split()
    return Contestant(
        name, module, worker, Role.PEER, handles, publishes, requires, environment=environment, composes=composes
    )


class Tasks(Redis):
    title = "Tasks with results on Redis"
    safety = f"{Redis.safety} Each keeps its results there, before it acks the task; Huey has no acks."
    measurements = ("tasks", "sending", "trips", "chains", "chords", "large chord")
    contestants = (
        Contestant(
            "carteiro", "carteiro_tasks", ("carteiro", "run", "benchmarks.contestants.carteiro_tasks:app", "--json"),
            Role.OURS, 20_000, {"one": 5_000, "concurrent": 20_000}, composes=True,
        ),
        _peer(
            "Taskiq", "taskiq worker {module}:queue --workers 1 --log-level WARNING", 1_200,
            {"one": 2_500, "concurrent": 2_500}, "taskiq==0.13.0", "taskiq-aio-pika==0.6.1", "taskiq-redis==1.2.4",
        ),
        _peer("Huey", "huey_consumer {module}.huey -q", 2_500, {"one": 6_500}),
        _peer(
            "Dramatiq", "dramatiq {module} -p 1 -t 16", 1_500, {"one": 3_500}, "dramatiq[rabbitmq,redis]==2.2.1",
        ),
        _peer(
            "SAQ", "saq {module}.settings --quiet", 1_000, {"one": 3_000, "concurrent": 3_000},
            "saq[redis,hiredis]==0.26.4",
        ),
        _peer(
            "Celery", "celery -A {module} worker -P threads -c 1 --loglevel WARNING --without-gossip --without-mingle",
            500, {"one": 1_000}, "celery[redis]==5.7.0", composes=True,
        ),
        _peer("ARQ", "arq {module}.WorkerSettings", 800, {"one": 3_200, "concurrent": 3_200}, "arq==0.28.0"),
    )  # fmt: skip
    bounds = Bounds(handled_over_peer=8, composed_over_peer=10)
