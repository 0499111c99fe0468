"""The doctor: what may lose messages is warned of, what cannot work is an error, also on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from carteiro.ports.broker import Check
from tests.redis.stage import backend, soon
from tests.servers.process import free_port
from tests.servers.redis import RedisServer, with_query

pytestmark = pytest.mark.needs("redis")


async def examine(url: str) -> dict[str, Check]:
    return {check.name: check for check in await soon(backend(url).doctor())}


async def test_a_durable_server_is_well():
    with RedisServer(aof="everysec") as server:
        checks = await examine(server.url)
    assert {check.status for check in checks.values()} == {"ok"}
    assert "keys begin with `{carteiro}`" in checks["reachable"].detail
    assert "7.0.15" in checks["version"].detail or checks["version"].detail.split()[0] in ("redis", "valkey")


async def test_no_persistence_is_warned_of(redis_server: RedisServer):
    check = (await examine(redis_server.url))["persistence"]
    assert (check.status, check.detail) == (
        "warning",
        "none: a restart loses every message; `CONFIG SET appendonly yes`",
    )


@pytest.mark.parametrize("saved", [False, True])
async def test_snapshots_alone_are_warned_of_whether_there_was_one_yet_or_not(saved: bool):
    with RedisServer(config=["save 3600 1"]) as server:
        if saved:
            server.says("SAVE")
        check = (await examine(server.url))["persistence"]
    assert check.status == "warning"
    assert check.detail.startswith("snapshots only: a restart loses what came since the last one")


async def test_a_snapshot_that_someone_took_by_hand_is_no_persistence():
    with RedisServer() as server:
        server.says("SAVE")
        assert (await examine(server.url))["persistence"].detail.startswith("none")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_policy_that_evicts_is_warned_of(policy: str):
    with RedisServer(policy=policy) as server:
        check = (await examine(server.url))["eviction"]
    assert check.status == "warning"
    assert check.detail == (
        f"maxmemory-policy is {policy}: a full server drops messages; `CONFIG SET maxmemory-policy noeviction`"
    )


async def test_a_server_that_is_nearly_full_is_warned_of():
    with RedisServer(maxmemory="20mb") as server:
        assert (await examine(server.url))["memory"].status == "ok"
        server.says("SET", "other", "x" * 6_000_000)
        server.says("CONFIG", "SET", "maxmemory", server.says("INFO", "memory")["used_memory"] + 200_000)
        check = (await examine(server.url))["memory"]
    assert check.status == "warning"
    assert " MB of " in check.detail


async def test_a_replica_is_an_error(redis_server: RedisServer):
    with RedisServer(replica_of=redis_server) as replica:
        check = (await examine(replica.url))["role"]
    assert (check.status, check.detail) == ("error", "it is a replica, and takes no writes: connect to the master")


async def test_a_server_that_is_not_there_is_an_error():
    check = (await examine(f"redis://:s3cr3t@127.0.0.1:{free_port()}"))["reachable"]
    assert check.status == "error"
    assert "cannot be reached" in check.detail
    assert "s3cr3t" not in check.detail


@pytest.mark.parametrize(
    "rule", ["-evalsha", "-info", "resetkeys ~other*", "-hgetall", "-ssubscribe", "resetchannels", "-rpush"]
)
async def test_a_user_who_may_not_do_what_it_takes_is_an_error(rule: str):
    with RedisServer() as server:
        server.says("ACL", "SETUSER", "ana", "on", ">secret", "~*", "&*", "+@all", *rule.split())
        checks = await examine(server.url_with(user="ana", password="secret"))
    errors = [check for check in checks.values() if check.status == "error"]
    assert len(errors) == 1, checks
    assert "does not permit this user what carteiro needs" in errors[0].detail


async def test_a_user_who_may_not_read_the_configuration_is_well():
    with RedisServer(aof="everysec") as server:
        server.says("ACL", "SETUSER", "ana", "on", ">secret", "~*", "&*", "+@all", "-config")
        checks = await examine(server.url_with(user="ana", password="secret"))
    assert {check.status for check in checks.values()} == {"ok"}


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("carteiro"), "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "300"},
    )


def test_the_command_shows_what_the_doctor_found_and_no_password():
    with RedisServer(policy="allkeys-lru", password="s3cr3t") as server:
        told = doctor("--broker", with_query(server.url, prefix="shop"))
        assert told.returncode == 0, told.stderr
        assert "s3cr3t" not in told.stdout + told.stderr
        for words in ("keys begin with `{shop}`", "maxmemory-policy is allkeys-lru", "none: a restart loses"):
            assert words in " ".join(told.stdout.split()), told.stdout


def test_the_command_fails_where_there_is_an_error():
    with RedisServer(password="s3cr3t") as server:
        wrong = doctor("--broker", server.url_with(password="wr0ng"))
        server.kill()
        gone = doctor("--broker", server.url)
    assert (wrong.returncode, gone.returncode) == (1, 1)
    assert "does not accept this user and password" in " ".join(wrong.stdout.split())
    assert "cannot be reached" in " ".join(gone.stdout.split())
    for told in (wrong, gone):
        assert "s3cr3t" not in told.stdout + told.stderr
        assert "wr0ng" not in told.stdout + told.stderr
        assert "Traceback" not in told.stderr
