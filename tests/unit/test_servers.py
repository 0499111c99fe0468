"""The servers that tests run on: what they survive, what they serve, what they leave."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.certificates import Certificates
from tests.servers.process import ServerDown
from tests.servers.redis import RedisServer, programs, with_query
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_sentinel import RedisSentinel

pytestmark = pytest.mark.needs("redis")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def impatient(url: str, **options: object) -> redis.Redis:
    """A client that tries once, and waits half a second for an answer."""
    options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 0.5, "decode_responses": True} | options
    return redis.Redis.from_url(url, **options)


# -- one server -------------------------------------------------------------------------------------------------------


def test_a_server_that_was_killed_comes_back_on_its_port_with_what_its_append_only_file_held():
    with RedisServer(aof="always") as server:
        server.says("SET", "greeting", "hello")
        server.kill()
        assert not server.is_running
        with pytest.raises(redis.ConnectionError):
            server.says("PING")

        server.start()

        assert server.says("GET", "greeting") == "hello"


def test_a_restarted_server_without_an_append_only_file_holds_nothing():
    with RedisServer() as server:
        server.says("SET", "greeting", "hello")
        server.restart()
        assert server.says("GET", "greeting") is None


def test_a_frozen_server_keeps_its_connections_and_answers_when_it_is_thawed():
    with RedisServer() as server, impatient(server.url) as client, impatient(server.url, socket_timeout=30) as patient:
        client.ping()
        patient.ping()
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()

        server.thaw()

        assert patient.ping()


def test_a_server_leaves_neither_a_process_nor_a_folder():
    with RedisServer(aof="everysec") as server:
        server.says("SET", "greeting", "hello")
        assert server.folder.is_dir()
        server.freeze()
    assert not server.is_running
    assert not server.folder.exists()


def test_a_server_that_cannot_start_says_why_in_the_words_of_its_log():
    server = RedisServer(config=["no-such-directive yes"])
    with pytest.raises(ServerDown, match=r"ended with exit code 1 before it was ready(.|\n)*no-such-directive"), server:
        pass
    assert not server.folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a server whose parent was killed")
def test_a_server_dies_with_the_process_that_started_it():
    code = "s = RedisServer(); s.start(); print(s.port, s.folder, flush=True); signal.pause()"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import signal; from tests.servers.redis import RedisServer; {code}"],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        port, folder = parent.stdout.readline().split()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as connection:
            connection.sendall(b"PING\r\n")
            assert connection.recv(100) == b"+PONG\r\n"
            parent.kill()
            assert connection.recv(1) == b""  # the end of the connection, and of the server
    shutil.rmtree(folder)  # nobody was left to do it


def test_a_server_is_reached_through_its_unix_socket():
    with RedisServer(password="p@ss word") as server, redis.Redis.from_url(server.unix_url) as client:
        assert client.ping()


def test_passwords_and_users_are_asked_for():
    with RedisServer(password="p@ss word", users=["ana on >secret ~ana:* &* +@all"]) as server:
        with impatient(server.url_with(password="wrong")) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with impatient(server.url_with(user="ana", password="secret")) as client:
            assert client.acl_whoami() == "ana"
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.get("another's")


def test_a_server_with_a_limit_of_memory_refuses_writes_beyond_it():
    def fill() -> None:
        while True:
            server.says("APPEND", "text", "x" * 500_000)

    with RedisServer(maxmemory="5mb") as server:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill()
        assert server.says("EXISTS", "text")


def test_a_replica_has_what_its_master_has_and_refuses_writes():
    with RedisServer(password="secret") as master:
        master.says("SET", "greeting", "hello")
        with RedisServer(password="secret", replica_of=master) as replica:
            assert replica.says("GET", "greeting") == "hello"
            with pytest.raises(redis.ReadOnlyError):
                replica.says("SET", "greeting", "good-bye")


@pytest.mark.needs("redis-tls")
def test_a_tls_server_answers_over_tls_to_who_trusts_its_authority(certificates: Certificates):
    with RedisServer(tls=certificates) as server:
        assert server.url.startswith("rediss://")
        assert server.says("PING")
        with impatient(f"redis://127.0.0.1:{server.port}") as plain, pytest.raises(redis.ConnectionError):
            plain.ping()
        with impatient(f"rediss://127.0.0.1:{server.port}") as stranger, pytest.raises(redis.ConnectionError):
            stranger.ping()


@pytest.mark.needs("redis-tls")
def test_a_tls_server_can_ask_its_clients_for_a_certificate(certificates: Certificates):
    with RedisServer(tls=certificates, config=["tls-auth-clients optional"]) as server:
        server.says("CONFIG SET", "tls-auth-clients", "yes")
        with impatient(server.url) as unknown, pytest.raises(redis.ConnectionError):
            unknown.ping()
        shown, key = str(certificates.client_certificate), str(certificates.client_key)
        with impatient(with_query(server.url, ssl_certfile=shown, ssl_keyfile=key)) as known:
            assert known.ping()


# -- many servers -----------------------------------------------------------------------------------------------------


def test_a_cluster_serves_all_slots_from_three_masters(redis_cluster: RedisCluster):
    ranges = redis_cluster.nodes[0].says("CLUSTER SHARDS")
    assert len(ranges) == 3
    with redis.RedisCluster(host="127.0.0.1", port=redis_cluster.nodes[0].port, decode_responses=True) as client:
        for number in range(100):
            client.set(f"test-cluster:{number}", number)
        assert client.get("test-cluster:99") == "99"
    assert [node.says("DBSIZE") for node in redis_cluster.nodes].count(0) == 0


def test_sentinels_fail_over_when_they_are_told_to_and_when_the_master_dies():
    with RedisSentinel(password="secret") as watched:
        first = watched.master
        second = watched.failover()
        assert watched.master is second is not first
        second.says("SET", "greeting", "hello")

    with RedisSentinel() as watched:
        first = watched.master
        first.kill()
        assert watched.new_master(first) is watched.master is not first


# -- what the fixtures give -------------------------------------------------------------------------------------------


def test_each_test_has_a_prefix_of_its_own(redis_server: RedisServer, redis_url: str):
    assert redis_url.startswith(redis_server.url + "?prefix=test-")


def test_a_test_runs_on_every_version_that_is_installed(each_redis_server: RedisServer, each_redis_url: str):
    info = each_redis_server.says("INFO", "server")
    version = each_redis_server.program.version
    assert info.get("valkey_version", info["redis_version"]) == ".".join(map(str, version))
    assert each_redis_server.program in programs()
    assert each_redis_url.startswith(each_redis_server.url)
