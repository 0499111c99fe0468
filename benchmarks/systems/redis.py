"""Redis: one server for all, started on a free port, and a database of it each."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version

import redis

from benchmarks.processes import Failed
from benchmarks.systems.base import MESSAGES, Bounds, Contestant, Role, carteiro, huey, peer

SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    # The log is rewritten between measurements, not in one.
    "auto-aof-rewrite-percentage": "0",
}
BARE = ("python", "-m", "benchmarks.contestants.bare_worker")
PATIENCE = 20.0
"""Seconds for the server to do what it is asked."""


class Redis:
    title = "Redis"
    place = "The server is one thread, which all workers share."
    safety = "One server for all, which keeps an append-only file and syncs it each second (`appendfsync everysec`)."
    measurements: Sequence[str] = MESSAGES
    contestants: Sequence[Contestant] = (
        carteiro(60_000, {"one": 8_000, "concurrent": 60_000, "many": 130_000}),
        Contestant(
            "bare loop", "bare_redis", (*BARE, "handle"), Role.BARE, 60_000,
            {"one": 8_000, "concurrent": 8_000, "many": 120_000},
        ),
        Contestant("its calls alone", "bare_redis", (*BARE, "calls"), Role.CALLS, 80_000, {}),
        peer("FastStream", "faststream run {module}:app", 3_000, 5_000, 20_000, "faststream[redis,cli]==0.7.8"),
        peer(
            "Taskiq", "taskiq worker {module}:queue --workers 1 --log-level WARNING", 2_500, 2_500, 2_500,
            "taskiq==0.13.0", "taskiq-aio-pika==0.6.1", "taskiq-redis==1.2.4",
        ),
        huey(3_000, {"one": 6_500, "many": 6_500}),
        peer("Dramatiq", "dramatiq {module} -p 1 -t 16", 2_500, 3_500, 4_000, "dramatiq[rabbitmq,redis]==2.2.1"),
        peer("SAQ", "saq {module}.settings --quiet", 1_200, 3_000, 5_000, "saq[redis,hiredis]==0.26.4"),
        peer(
            "Celery", "celery -A {module} worker -P threads -c 1 --loglevel WARNING --without-gossip --without-mingle",
            700, 1_000, 1_000, "celery[redis]==5.7.0",
        ),
        peer("ARQ", "arq {module}.WorkerSettings", 1_100, 3_200, 3_500, "arq==0.28.0"),
        peer("streaQ", "streaq run {module}:worker", 700, 2_000, 8_000, "streaq==7.2.0"),
        peer("RQ", "python -m {module}", 250, 2_000, 6_000, "rq==3.0.0"),
    )  # fmt: skip
    bounds = Bounds(p50=0.5, p99=2, memory=60)

    def __enter__(self) -> Redis:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="carteiro-bench-redis-"))
            self._server = self._started(folder)
            stack.callback(self._stop)
            self._client = stack.enter_context(redis.Redis(port=self._port))
            self._until(self._answers, "answer")
            self._stack = stack.pop_all()
        self._free = list(range(16))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        database = self._free.pop(0)
        try:
            yield f"redis://127.0.0.1:{self._port}/{database}"
        finally:
            with redis.Redis(port=self._port, db=database) as client:
                client.flushdb()
            self._free.insert(0, database)
            if len(self._free) == 16:
                self._client.bgrewriteaof()
                self._until(self._rewritten, "rewrite its log")

    def describe(self) -> Mapping[str, str]:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("redis", "hiredis"))
        peers = ", ".join(one for contestant in self.contestants for one in contestant.requires)
        settings = ", ".join(f"{name} {value or '(none)'}" for name, value in SETTINGS.items())
        return {
            "redis-server": f"{self._client.info('server')['redis_version']}: {settings}",
            "client libraries": libraries,
            "peers": peers,
        }

    def _started(self, folder: str) -> subprocess.Popen[bytes]:
        options = [text for name, value in SETTINGS.items() for text in (f"--{name}", value)]
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._port), "--dir", folder, *options]
        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except FileNotFoundError:
            raise Failed(
                "no `redis-server` here: install one (on Debian and Ubuntu `apt-get install redis-server`), "
                "or leave it out with --system sqlite"
            ) from None

    def _answers(self) -> bool:
        if self._server.poll() is not None:
            raise Failed(f"redis-server ended with exit code {self._server.returncode} before it answered")
        try:
            return bool(self._client.ping())
        except redis.ConnectionError:
            return False

    def _rewritten(self) -> bool:
        found = self._client.info("persistence")
        return not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > end:
                raise Failed(f"redis-server did not {what} within {PATIENCE:g} s")
            time.sleep(0.01)

    def _stop(self) -> None:
        self._server.terminate()
        self._server.wait()
