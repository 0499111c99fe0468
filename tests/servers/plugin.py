"""Servers for tests: those that need one get it, or are skipped, or fail, and the summary says what was missing.

- `@pytest.mark.needs("redis-tls")` on a test that starts servers itself; the fixtures below say it for themselves.
- `CARTEIRO_TEST_REQUIRE=redis,valkey`, or `all`, in the environment: where one of these is missing, its tests fail.

The fixtures' servers are one for the whole session, without persistence; a test that would harm them starts its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.servers import rabbitmq
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import Program, RedisServer, programs, with_query
from tests.servers.redis_cluster import RedisCluster
from tests.servers.registry import SYSTEMS

REQUIRE = "CARTEIRO_TEST_REQUIRE"

_required = pytest.StashKey[frozenset[str]]()


# -- who needs what ---------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"needs(*names): takes servers of these systems: {', '.join(SYSTEMS)}")
    # Read now, since each test runs without our variables.
    names = {name for part in os.environ.get(REQUIRE, "").split(",") if (name := part.strip())}
    if unknown := sorted(names - SYSTEMS.keys() - {"all"}):
        raise pytest.UsageError(f"{REQUIRE} names {', '.join(unknown)}; there is: {', '.join(SYSTEMS)}, or all")
    config.stash[_required] = frozenset(SYSTEMS if "all" in names else names)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            need(item.config, name)


def need(config: pytest.Config, name: str) -> None:
    """Skip the test if there is no such server, or fail it if CARTEIRO_TEST_REQUIRE names it."""
    system = SYSTEMS[name]
    if not system.is_here():
        if name in config.stash[_required]:
            pytest.fail(f"{REQUIRE} names {system.missing}", pytrace=False)
        pytest.skip(system.missing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report.longrepr for report in terminalreporter.getreports("skipped")]
    reasons = [report[2] for report in reports if isinstance(report, tuple)]
    left_out: dict[str, int] = {
        system.missing: count for system in SYSTEMS.values() if (count := reasons.count(f"Skipped: {system.missing}"))
    }
    if left_out:
        terminalreporter.section("servers that were missing")
        for missing, count in left_out.items():
            terminalreporter.line(f"{missing}. {count} {'test was' if count == 1 else 'tests were'} left out.")
        terminalreporter.line(f"With {REQUIRE}=all they fail instead.")


# -- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _redis_servers() -> Iterator[Callable[[Program], RedisServer]]:
    with contextlib.ExitStack() as stack:
        started: dict[Program, RedisServer] = {}

        def server(program: Program) -> RedisServer:
            if program not in started:
                started[program] = stack.enter_context(RedisServer(program=program))
            return started[program]

        yield server


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest, _redis_servers: Callable[[Program], RedisServer]) -> RedisServer:
    """The session's Redis (or Valkey, if that is what there is)."""
    need(request.config, "redis")
    return _redis_servers(programs()[0])


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The session's Redis, with a prefix of the test's own."""
    return _own_part_of(redis_server.url)


@pytest.fixture(scope="session")
def each_redis_server(request: pytest.FixtureRequest, _redis_servers: Callable[[Program], RedisServer]) -> RedisServer:
    """The session's server of each version of Redis and Valkey that is installed: the test runs on every one."""
    need(request.config, "redis")
    return _redis_servers(request.param)


@pytest.fixture
def each_redis_url(each_redis_server: RedisServer) -> str:
    """The session's server of each version, with a prefix of the test's own."""
    return _own_part_of(each_redis_server.url)


@pytest.fixture(scope="session")
def redis_cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    """The session's cluster of three masters."""
    need(request.config, "redis")
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """The session's cluster, with a prefix of the test's own."""
    return _own_part_of(redis_cluster.url)


# -- RabbitMQ ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _rabbitmq_servers() -> Iterator[Callable[[rabbitmq.Program], RabbitServer]]:
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda program: stack.enter_context(RabbitServer(program=program)))


@pytest.fixture(scope="session")
def rabbitmq_server(
    request: pytest.FixtureRequest, _rabbitmq_servers: Callable[[rabbitmq.Program], RabbitServer]
) -> RabbitServer:
    """The session's RabbitMQ."""
    need(request.config, "rabbitmq")
    return _rabbitmq_servers(rabbitmq.programs()[0])


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitServer) -> str:
    """The session's RabbitMQ, with a prefix of the test's own."""
    return _own_part_of(rabbitmq_server.url)


@pytest.fixture(scope="session")
def each_rabbitmq_server(
    request: pytest.FixtureRequest, _rabbitmq_servers: Callable[[rabbitmq.Program], RabbitServer]
) -> RabbitServer:
    """The session's server of each version of RabbitMQ that is installed: the test runs on every one."""
    need(request.config, "rabbitmq")
    return _rabbitmq_servers(request.param)


@pytest.fixture
def each_rabbitmq_url(each_rabbitmq_server: RabbitServer) -> str:
    """The session's server of each version, with a prefix of the test's own."""
    return _own_part_of(each_rabbitmq_server.url)


# -- every version of a system ----------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    versions: dict[str, Sequence[Program | rabbitmq.Program]] = {
        "each_redis_server": programs(),
        "each_rabbitmq_server": rabbitmq.programs(),
    }
    for fixture, found in versions.items():
        if fixture in metafunc.fixturenames:
            names = [program.name for program in found]
            # Without any, one test remains, to be skipped.
            metafunc.parametrize(fixture, found or [None], ids=names or ["missing"], indirect=True, scope="session")


def _own_part_of(url: str) -> str:
    return with_query(url, prefix=f"test-{uuid.uuid4().hex[:8]}")
