"""URLs: each way to reach a server carries messages, and each one that is wrong says so without its secrets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from carteiro import BrokerError, BrokerUnavailable, ConfigurationError
from carteiro.backends.rabbitmq.address import parse
from tests.rabbitmq.stage import (
    ORDERS,
    Handled,
    backend,
    connected,
    outgoing,
    passes,
    patiently,
    shop,
    soon,
    until,
    with_query,
    working,
)
from tests.servers.certificates import Certificates
from tests.servers.process import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer

pytestmark = pytest.mark.needs("rabbitmq")

SECRET = "s3cr3t@:/?#% é"


def own(url: str) -> str:
    return with_query(url, prefix=f"test-{uuid.uuid4().hex[:8]}")


@contextlib.asynccontextmanager
async def user(server: RabbitServer, name: str, **rights: str) -> AsyncIterator[str]:
    """A user of its own, and its URL."""
    name = f"{name}-{uuid.uuid4().hex[:4]}"
    await asyncio.to_thread(server.add_user, name, SECRET, **rights)
    yield name


# -- who one is -------------------------------------------------------------------------------------------------------


async def test_a_user_and_a_password_of_any_letters_are_taken_from_the_url(rabbitmq_server: RabbitServer):
    async with (
        user(rabbitmq_server, "ána@home") as name,
        connected(own(rabbitmq_server.url_with(user=name, password=SECRET)), ORDERS) as broker,
    ):
        await passes(broker)


@pytest.mark.parametrize("name", ["guest", "nobody"])
async def test_a_wrong_password_is_refused_and_not_shown(
    rabbitmq_server: RabbitServer, name: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    broker = backend(rabbitmq_server.url_with(user=name, password="wr0ng")).broker
    with pytest.raises(BrokerError, match="does not accept this user and password") as refused:
        await soon(broker.connect())
    assert not isinstance(refused.value, BrokerUnavailable)
    assert f"127.0.0.1:{rabbitmq_server.port}" in str(refused.value)
    assert "wr0ng" not in f"{refused.value!r} {refused.value.__cause__!r} {caplog.text}"


# -- virtual hosts and prefixes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vhost", ["plain", "with/slash", "with space é"])
async def test_each_virtual_host_has_queues_of_its_own(rabbitmq_server: RabbitServer, vhost: str):
    await asyncio.to_thread(rabbitmq_server.add_vhost, vhost)
    async with (
        connected(own(rabbitmq_server.url), ORDERS) as root,
        connected(rabbitmq_server.url_with(vhost=vhost), ORDERS) as other,
    ):
        await passes(root)
        await passes(other)
        assert [status.waiting for status in await other.groups()] == [0]


async def test_a_virtual_host_that_is_not_there_is_named(rabbitmq_server: RabbitServer):
    with pytest.raises(BrokerError, match=r"does not let this user into.*nowhere") as refused:
        await soon(backend(rabbitmq_server.url_with(vhost="nowhere")).broker.connect())
    assert f"127.0.0.1:{rabbitmq_server.port}" in str(refused.value)


async def test_a_virtual_host_that_is_closed_to_this_user_is_named(rabbitmq_server: RabbitServer):
    await asyncio.to_thread(rabbitmq_server.add_vhost, "private")
    async with user(rabbitmq_server, "ana") as name:
        url = rabbitmq_server.url_with(vhost="private", user=name, password=SECRET)
        with pytest.raises(BrokerError, match=r"does not let this user into.*private"):
            await soon(backend(url).broker.connect())


# -- permissions ------------------------------------------------------------------------------------------------------


async def test_a_user_without_permission_is_told_what_it_needs(rabbitmq_server: RabbitServer):
    async with user(rabbitmq_server, "ana", may="^mine") as name:
        broker = backend(own(rabbitmq_server.url_with(user=name, password=SECRET))).broker
        with pytest.raises(BrokerError, match=r"does not permit that.*give it configure, write and read on") as refused:
            await soon(broker.connect())
        await broker.close()
    assert f"127.0.0.1:{rabbitmq_server.port}" in str(refused.value)
    assert not isinstance(refused.value, BrokerUnavailable)


async def test_a_user_that_may_do_what_carteiro_needs_and_no_more_is_enough(rabbitmq_server: RabbitServer):
    # The queues and exchanges of the prefix, the levels of delay that all share, and the exchange "" of all queues.
    may = r"^(carteiro[.].*|mine([.].*)?|amq[.]default|)$"
    async with user(rabbitmq_server, "ana", may=may) as name:
        url = with_query(rabbitmq_server.url_with(user=name, password=SECRET), prefix="mine")
        async with connected(url, ORDERS) as broker:
            await passes(broker)


async def test_a_permission_that_is_taken_away_is_said_by_the_publish_that_misses_it(rabbitmq_server: RabbitServer):
    async with (
        user(rabbitmq_server, "ana") as name,
        connected(own(rabbitmq_server.url_with(user=name, password=SECRET)), ORDERS) as broker,
    ):
        await asyncio.to_thread(rabbitmq_server.allow, name, may="^nothing$")
        await asyncio.to_thread(rabbitmq_server.close_all_connections)  # a channel remembers what was permitted
        with pytest.raises(BrokerError, match=r"does not permit that to this user.*access to exchange"):
            await patiently(lambda: broker.publish([outgoing()]))
        await asyncio.to_thread(rabbitmq_server.allow, name)
        await passes(broker)


# -- several servers --------------------------------------------------------------------------------------------------


async def test_of_several_servers_one_that_is_down_and_one_that_hangs_are_passed_over(rabbitmq_server: RabbitServer):
    with Proxy(rabbitmq_server.port) as hanging:
        hanging.stall()
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{hanging.port},127.0.0.1:{rabbitmq_server.port}"
        url = own(rabbitmq_server.url.replace(f"127.0.0.1:{rabbitmq_server.port}", hosts))
        for _ in range(4):  # each begins with one at random
            async with connected(with_query(url, connect_timeout="0.3"), ORDERS) as broker:
                await passes(broker)


async def test_where_none_of_several_servers_answers_each_is_named_with_its_trouble(rabbitmq_server: RabbitServer):
    with Proxy(rabbitmq_server.port) as hanging:
        hanging.stall()
        nobody = free_port()
        url = f"amqp://ana:s3cr3t@127.0.0.1:{nobody},127.0.0.1:{hanging.port}?connect_timeout=0.2"
        with pytest.raises(BrokerUnavailable) as refused:
            await soon(backend(url).broker.connect())
    said = str(refused.value)
    assert "start it, or mend the broker's URL" in said
    assert f"127.0.0.1:{nobody}: " in said
    assert f"127.0.0.1:{hanging.port}: no answer within 0.2 s" in said
    assert "s3cr3t" not in said


async def test_a_worker_whose_server_goes_away_goes_on_with_another(rabbitmq_server: RabbitServer):
    handled = Handled()
    with Proxy(rabbitmq_server.port) as one, Proxy(rabbitmq_server.port) as other:
        hosts = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
        app = shop(own(rabbitmq_server.url.replace(f"127.0.0.1:{rabbitmq_server.port}", hosts)), handled, breaker=None)
        async with working(app):
            for number in range(4):
                gone, stays = (one, other) if number % 2 == 0 else (other, one)
                stays.heal()
                gone.refuse()
                gone.cut()
                await app.publish("orders", number)
                await handled.all_of([number])
                await until(lambda stays=stays: _passes_through(stays))  # type: ignore[misc]


async def _passes_through(proxy: Proxy) -> bool:
    return proxy.connections >= 1


# -- heartbeats -------------------------------------------------------------------------------------------------------


async def test_the_heartbeat_of_the_url_is_the_connections(rabbitmq_server: RabbitServer):
    async with connected(own(with_query(rabbitmq_server.url, heartbeat="7")), ORDERS):
        pids = "Pid <- rabbit_networking:local_connections()"
        beats = f"[Beat || {pids}, {{timeout, Beat}} <- rabbit_reader:info(Pid, [timeout])]"
        assert "7" in await asyncio.to_thread(rabbitmq_server.evaluate, beats)


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(certificates: Certificates) -> Iterator[RabbitServer]:
    """One that wants to see a certificate of each client, and takes it for who the client is, if it asks for that."""
    config = [
        "auth_mechanisms.1 = PLAIN",
        "auth_mechanisms.2 = EXTERNAL",
        "ssl_cert_login_from = subject_alternative_name",
    ]
    config.append("ssl_cert_login_san_type = dns")
    server = RabbitServer(tls=certificates, config=["ssl_options.fail_if_no_peer_cert = true", *config])
    _add_plugin(server, "rabbitmq_auth_mechanism_ssl")
    with server:
        yield server


def _add_plugin(server: RabbitServer, name: str) -> None:
    """It comes with the server, and is not enabled."""
    (shipped,) = Path(server.program.home, "plugins").glob(f"{name}-*")
    (server.folder / "home" / "plugins" / shipped.name).symlink_to(shipped)
    (server.folder / "plugins").write_text(f"[{name}].")


@pytest.fixture
def shown(certificates: Certificates) -> dict[str, str]:
    """What shows the client's certificate."""
    return {"ssl_certfile": str(certificates.client_certificate), "ssl_keyfile": str(certificates.client_key)}


async def test_tls_carries_messages_for_who_trusts_the_authority(secured: RabbitServer, shown: dict[str, str]):
    url = with_query(secured.url, **shown)
    async with connected(own(url), ORDERS) as broker:
        await passes(broker)
    async with connected(own(url.replace("127.0.0.1", "localhost")), ORDERS) as broker:
        await passes(broker)


async def test_tls_with_an_authority_that_nobody_trusts_says_what_to_set(secured: RabbitServer, shown: dict[str, str]):
    url = with_query(f"amqps://guest:s3cr3t@127.0.0.1:{secured.port}", **shown)
    with pytest.raises(BrokerError, match=r"CERTIFICATE_VERIFY_FAILED.*ssl_ca_certs") as refused:
        await soon(backend(url).broker.connect())
    assert f"amqps://127.0.0.1:{secured.port}" in str(refused.value)
    assert "s3cr3t" not in str(refused.value)
    async with connected(own(with_query(secured.url, ssl_cert_reqs="none", **shown)), ORDERS) as broker:
        await passes(broker)


async def test_tls_to_another_name_than_the_certificates_is_refused_unless_names_do_not_matter(
    secured: RabbitServer, shown: dict[str, str]
):
    with Proxy(secured.port) as proxy:  # listens on 127.0.0.1 alone, which 127.1 is too
        url = with_query(secured.url_with(port=proxy.port).replace("127.0.0.1", "127.1"), **shown)
        with pytest.raises(BrokerError, match="ssl_check_hostname"):
            await soon(backend(url).broker.connect())
        async with connected(own(with_query(url, ssl_check_hostname="false")), ORDERS) as broker:
            await passes(broker)


async def test_a_server_that_wants_a_client_certificate_is_named_to_who_shows_none(secured: RabbitServer):
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{secured.port}"):
        await soon(backend(secured.url).broker.connect())


async def test_a_certificate_may_say_who_the_client_is(secured: RabbitServer, shown: dict[str, str]):
    url = own(with_query(secured.url, auth="certificate", **shown))
    with pytest.raises(BrokerError, match="does not accept this user and password, or certificate"):
        await soon(backend(url).broker.connect())
    await asyncio.to_thread(secured.add_user, "carteiro-tests", "unused")
    async with connected(url, ORDERS) as broker:
        await passes(broker)


async def test_plain_to_a_tls_port_and_tls_to_a_plain_one_end_in_clear_errors(
    secured: RabbitServer, rabbitmq_server: RabbitServer
):
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{secured.port}"):
        await soon(backend(f"amqp://127.0.0.1:{secured.port}?connect_timeout=2").broker.connect())
    with pytest.raises(BrokerUnavailable, match=f"amqps://127.0.0.1:{rabbitmq_server.port}"):
        await soon(backend(f"amqps://127.0.0.1:{rabbitmq_server.port}?connect_timeout=2").broker.connect())


async def test_certificates_that_cannot_be_read_are_named_and_the_keys_password_is_not():
    url = "amqps://localhost?ssl_ca_certs=/nowhere/ca.pem&ssl_password=s3cr3t"
    with pytest.raises(ConfigurationError, match=r"ssl_ca_certs=/nowhere/ca.pem") as refused:
        await soon(backend(url).broker.connect())
    assert "s3cr3t" not in str(refused.value)


# -- who is no such server --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A port that says this to whoever says something."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(answer)
        await reader.read()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(tell, "127.0.0.1", port) as serving:
        yield port
        serving.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command 'AMQP'\r\n"])
async def test_a_port_that_speaks_something_else_is_refused(answer: bytes):
    async with answering(answer) as port:
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}.*does not speak AMQP 0-9-1"):
            await soon(backend(f"amqp://127.0.0.1:{port}?connect_timeout=3").broker.connect())


async def test_a_server_of_another_amqp_is_refused():
    async with answering(b"AMQP\x00\x01\x00\x00") as port:
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}.*does not speak AMQP 0-9-1"):
            await soon(backend(f"amqp://127.0.0.1:{port}?connect_timeout=3").broker.connect())


# -- what is wrong ----------------------------------------------------------------------------------------------------


async def test_a_url_that_is_wrong_says_what_and_never_shows_a_secret():
    for url, words in WRONG.items():
        with pytest.raises(ConfigurationError, match=words) as refused:
            backend(url)
        assert "s3cr3t" not in str(refused.value), url


WRONG = {
    "amqp://ana:s3cr3t@host:port": "a port that is no number up to 65535",
    "amqp://ana:s3cr3t@host:99999": "a port that is no number up to 65535",
    "amqp://ana:s3cr3t@host/a/b": "a `/` in its virtual host: write that one as %2F",
    "amqp://ana:s3cr3t@host?colour=red": "an option `colour` that is none of: auth, connect_timeout, heartbeat",
    "amqp://ana:s3cr3t@host?ssl_cert_reqs=none": "has TLS options, and is not amqps://",
    "amqps://ana:s3cr3t@host?ssl_cert_reqs=perhaps": "`perhaps`, and none of: none, optional, required",
    "amqps://host?ssl_password=s3cr3t&colour=red": "an option `colour`",
    "amqp://ana:s3cr3t@host?prefix=a.b": "`a.b` is no prefix for queues: take letters",
    "amqp://ana:s3cr3t@host?prefix=": "`` is no prefix for queues",
    "amqp://ana:s3cr3t@host?timeout=soon": "`soon` for a timeout, which is no number of seconds",
    "amqp://ana:s3cr3t@host?heartbeat=-1": "`-1` for a timeout",
    "amqp://ana:s3cr3t@host?connect_timeout=nan": "`nan` for a timeout",
    "amqp://ana:s3cr3t@host?auth=certificate": "auth= is `password`, or with amqps:// also `certificate`",
    "amqps://ana:s3cr3t@host?auth=charm": "auth= is `password`",
    "amqp://ana:s3cr3t@[::1": "cannot be read",
    "amqp://ana:s3cr3t/of@host": "percent",
    "amqp://ana:s3cr3t#of@host": "percent",
}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://ana:s3cr3t@host:1/shop", "amqp://host:1/shop"),
        ("amqp://ana:s3cr3t@host:1/%2F", "amqp://host:1"),
        ("amqps://ana:s3cr3t@[fe80::1]", "amqps://[fe80::1]:5671"),
        ("amqp://ana:s3cr3t@one:1,two/shop", "amqp://one:1,two:5672/shop"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str):
    address = parse(url)
    assert str(address) == shown
    assert address.password == "s3cr3t"
