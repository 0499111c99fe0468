"""URLs: each way to reach a server carries messages, and each one that is wrong says so without its secrets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from carteiro import BrokerError, BrokerUnavailable, ConfigurationError
from carteiro.backends.redis.address import parse
from tests.redis.stage import ORDERS, backend, connected, outgoing, passes, settle, soon, take
from tests.servers.certificates import Certificates
from tests.servers.redis import RedisServer, with_query

pytestmark = pytest.mark.needs("redis")

SECRET = "s3cr3t@:/?#% é"
SMALLEST_RULE = (
    "resetchannels ~{carteiro}* &{carteiro}* -@all"
    " +client|setname +select +info +evalsha +eval +ssubscribe +sunsubscribe +spublish +pubsub|shardnumsub +time"
    " +get +set +del +unlink +exists +incr +hget +hset +hsetnx +hdel +hexists +hmget +hgetall +hkeys +hlen"
    " +hincrby +hrandfield"
    " +lindex +llen +lpop +lpush +lrange +ltrim +rpush +sadd +srem"
    " +zadd +zcard +zcount +zrange +zrangebyscore +zrangebylex +zrem +zremrangebyscore +zscore +zmscore"
    " +xadd +xrange +xtrim"
)
"""What a user has to be permitted, without lists, streams and channels of others; `carteiro` is the prefix."""


@pytest.fixture(scope="module")
def locked() -> Iterator[RedisServer]:
    """A server with a password, and a user `ana` who may do no more than carteiro needs."""
    with RedisServer(users=[f"ana on >secret {SMALLEST_RULE}"], config=["databases 4"]) as server:
        server.says("CONFIG", "SET", "requirepass", SECRET)
        server.options["password"] = SECRET
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# -- who one is -------------------------------------------------------------------------------------------------------


async def test_a_password_of_any_letters_is_taken_from_the_url(locked: RedisServer):
    async with connected(locked.url, ORDERS) as broker:
        await passes(broker)


async def test_a_password_may_stand_among_the_options(locked: RedisServer):
    url = with_query(f"redis://127.0.0.1:{locked.port}", password=SECRET, username="default")
    async with connected(url, ORDERS) as broker:
        await passes(broker)


@pytest.mark.parametrize("user", [None, "ana"])
async def test_a_wrong_password_is_refused_and_not_shown(
    locked: RedisServer, user: str | None, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    broker = backend(locked.url_with(user=user or "", password="wr0ng")).broker
    with pytest.raises(BrokerError, match="does not accept this user and password") as refused:
        await soon(broker.connect())
    assert f"127.0.0.1:{locked.port}" in str(refused.value)
    assert "wr0ng" not in f"{refused.value!r} {refused.value.__cause__!r} {caplog.text}"


async def test_without_a_password_the_error_says_where_it_goes(locked: RedisServer):
    with pytest.raises(BrokerError, match="wants a password: put it into the URL, as in redis://:PASSWORD@host"):
        await soon(backend(f"redis://127.0.0.1:{locked.port}").broker.connect())


# -- databases, prefixes, sockets ------------------------------------------------------------------------------------


async def test_each_database_has_queues_of_its_own(locked: RedisServer):
    async with (
        connected(locked.url_with(db=0), ORDERS) as zero,
        connected(locked.url_with(db=3), ORDERS) as three,
        connected(with_query(f"{locked.url}", db="2"), ORDERS) as two,
    ):
        for number, broker in enumerate((zero, three, two)):
            await broker.publish([outgoing(b"%d" % number)])
        for number, broker in enumerate((zero, three, two)):
            (delivery,) = await take(broker.consume([ORDERS]), 1)
            assert delivery.message.body == b"%d" % number
            assert (await broker.groups())[0].waiting == 0


async def test_a_database_that_is_not_there_is_refused(locked: RedisServer):
    with pytest.raises(BrokerError, match="DB index is out of range"):
        await soon(backend(locked.url_with(db=17)).broker.connect())


async def test_two_prefixes_on_one_server_do_not_mix(redis_server: RedisServer):
    urls = [with_query(redis_server.url, prefix=f"test-mix{number}") for number in range(2)]
    async with connected(urls[0], ORDERS) as one, connected(urls[1], ORDERS) as other:
        await one.publish([outgoing(b"one")])
        consumers = one.consume([ORDERS]), other.consume([ORDERS])
        taken = await take(consumers[0])
        await other.publish([outgoing(b"other")])
        taken += await take(consumers[1])

        assert [delivery.message.body for delivery in taken] == [b"one", b"other"]
        assert [status.in_flight for status in await one.groups()] == [1]
        assert [status.in_flight for status in await other.groups()] == [1]
        for consumer, delivery in zip(consumers, taken, strict=True):
            await settle(consumer, [delivery])


async def test_a_unix_socket_carries_messages(locked: RedisServer):
    async with connected(locked.unix_url.replace("db=0", "db=1"), ORDERS) as broker:
        await passes(broker)


async def test_a_unix_socket_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BrokerUnavailable, match=r"nobody.sock` cannot be reached"):
        await soon(backend(f"unix://{tmp_path}/nobody.sock").broker.connect())


async def test_an_ipv6_address_carries_messages():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    with RedisServer(config=["bind 127.0.0.1 ::1"]) as server:
        async with connected(f"redis://[::1]:{server.port}/1", ORDERS) as broker:
            await passes(broker)
        server.stop()
        with pytest.raises(BrokerUnavailable, match=rf"redis://\[::1\]:{server.port}` cannot be reached"):
            await soon(backend(f"redis://[::1]:{server.port}").broker.connect())


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("redis-tls")
async def test_tls_carries_messages_for_who_trusts_the_authority(certificates: Certificates):
    with RedisServer(tls=certificates, password=SECRET) as server:
        async with connected(server.url, ORDERS) as broker:
            await passes(broker)
        async with connected(server.url.replace("127.0.0.1", "localhost"), ORDERS) as broker:
            await passes(broker)


@pytest.mark.needs("redis-tls")
async def test_tls_with_an_authority_that_nobody_trusts_says_what_to_set(certificates: Certificates):
    with RedisServer(tls=certificates) as server:
        with pytest.raises(BrokerError, match=r"CERTIFICATE_VERIFY_FAILED.*ssl_ca_certs") as refused:
            await soon(backend(f"rediss://127.0.0.1:{server.port}").broker.connect())
        assert f"rediss://127.0.0.1:{server.port}" in str(refused.value)
        async with connected(f"rediss://127.0.0.1:{server.port}?ssl_cert_reqs=none", ORDERS) as broker:
            await passes(broker)


@pytest.mark.needs("redis-tls")
async def test_tls_to_another_name_than_the_certificates_is_refused_unless_names_do_not_matter(
    certificates: Certificates,
):
    with RedisServer(tls=certificates, config=["bind 127.0.0.1 127.0.0.2"]) as server:
        url = server.url.replace("127.0.0.1", "127.0.0.2")
        with pytest.raises(BrokerError, match="ssl_check_hostname"):
            await soon(backend(url).broker.connect())
        async with connected(with_query(url, ssl_check_hostname="false"), ORDERS) as broker:
            await passes(broker)


@pytest.mark.needs("redis-tls")
async def test_a_server_that_wants_a_client_certificate_gets_it(certificates: Certificates):
    with RedisServer(tls=certificates, config=["tls-auth-clients optional"]) as server:
        server.says("CONFIG", "SET", "tls-auth-clients", "yes")
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{server.port}"):
            await soon(backend(server.url).broker.connect())
        shown = {"ssl_certfile": str(certificates.client_certificate), "ssl_keyfile": str(certificates.client_key)}
        async with connected(with_query(server.url, **shown), ORDERS) as broker:
            await passes(broker)


@pytest.mark.needs("redis-tls")
async def test_plain_to_a_tls_port_and_tls_to_a_plain_one_end_in_clear_errors(
    certificates: Certificates, redis_server: RedisServer
):
    with (
        RedisServer(tls=certificates) as server,
        pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{server.port}"),
    ):
        await soon(backend(f"redis://127.0.0.1:{server.port}").broker.connect())
    url = with_query(redis_server.url.replace("redis://", "rediss://"), connect_timeout="0.5")
    with pytest.raises(BrokerUnavailable, match=r"rediss://.*the port right, and one of TLS\?"):
        await soon(backend(url).broker.connect())


async def test_certificates_that_cannot_be_read_are_named_and_the_keys_password_is_not():
    url = "rediss://localhost?ssl_ca_certs=/nowhere/ca.pem&ssl_password=s3cr3t"
    with pytest.raises(ConfigurationError, match=r"ssl_ca_certs=/nowhere/ca.pem") as refused:
        await soon(backend(url).broker.connect())
    assert "s3cr3t" not in str(refused.value)


# -- what is wrong ---------------------------------------------------------------------------------------------------


async def test_a_url_that_is_wrong_says_what_and_never_shows_a_secret():
    for url, words in WRONG.items():
        with pytest.raises(ConfigurationError, match=words) as refused:
            backend(url)
        assert "s3cr3t" not in str(refused.value), url


WRONG = {
    "redis://:s3cr3t@host:port": r"`redis://:\*\*\*@host:\*\*\*` has a port that is no number up to 65535",
    "redis://:s3cr3t@host:99999": "has a port that is no number up to 65535",
    "redis://me:s3cr3t/0": r"`redis://me:\*\*\*` has a port that is no number",
    "redis://:s3cr3t": r"`redis://:\*\*\*` has a port that is no number",
    "redis://:s3cr3t@host/one": "`one` for its database",
    "redis://:s3cr3t@one,two": "several servers: write redis.sentinel:// or redis.cluster://",
    "redis://:s3cr3t@host?colour=red": "an option `colour` that is none of: connect_timeout, db",
    "redis://host?password=s3cr3t&colour=red": "`redis://host.*an option `colour`",
    "rediss://host?ssl_password=s3cr3t&colour=red": "an option `colour`",
    "redis+sentinel://host?sentinel_password=s3cr3t": "names no master: write it as redis.sentinel://host:26379,",
    "redis+sentinel://:s3cr3t@host": "names no master",
    "redis://:s3cr3t@host?ssl_cert_reqs=none": "has TLS options, and is not rediss://",
    "rediss://:s3cr3t@host?ssl_cert_reqs=perhaps": "`perhaps`, and none of: none, optional, required",
    "redis://:s3cr3t@host?prefix=a{b": "`a{b` is no prefix for keys: take letters",
    "redis://:s3cr3t@host?prefix=": "`` is no prefix for keys",
    "redis://:s3cr3t@host?timeout=soon": "`soon` for a timeout, which is no number of seconds",
    "redis://:s3cr3t@host?timeout=-1": "`-1` for a timeout",
    "redis://:s3cr3t@host?connect_timeout=nan": "`nan` for a timeout",
    "redis://:s3cr3t@[::1": "cannot be read",
    "redis://:s3cr3t/of@host": "percent",
    "redis://:s3cr3t#of@host": "percent",
    "redis://:of?s3cr3t@host": "percent",
    "redis://:s3cr3t@host#1": "#",
    "unix://:s3cr3t@": "no path of a socket: write it as unix:///path/redis.sock",
    "unix://:s3cr3t@run/redis.sock": "unix:///",
    "redis+cluster://:s3cr3t@host/1": "database 0",
}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ana:s3cr3t@host:1/2", "redis://host:1"),
        ("rediss://:s3cr3t@[fe80::1]", "rediss://[fe80::1]:6379"),
        ("redis+sentinel://:s3cr3t@one:1,two/main", "redis+sentinel://one:1,two:26379"),
        ("rediss+cluster://:s3cr3t@one,two:2", "rediss+cluster://one:6379,two:2"),
        ("unix://:s3cr3t@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str):
    address = parse(url)
    assert str(address) == shown
    assert address.password == "s3cr3t"
