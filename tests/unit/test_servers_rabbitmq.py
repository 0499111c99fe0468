"""The RabbitMQ that tests run on: what it survives, what it serves, what it leaves."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from tests.servers.certificates import Certificates
from tests.servers.process import PATIENCE, ServerDown
from tests.servers.rabbitmq import RabbitServer, programs

pytestmark = pytest.mark.needs("rabbitmq")

QUORUM = {"x-queue-type": "quorum"}


@contextmanager
def connected(parameters: Any) -> Iterator[Any]:
    """A connection, by a URL or by pika's parameters; closed afterwards, if it still stands."""
    connection = pika.BlockingConnection(pika.URLParameters(parameters) if isinstance(parameters, str) else parameters)
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()


def publish(url: str, queue: str, body: bytes) -> None:
    """Publish durably, and return when the server has confirmed it."""
    with connected(url) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, arguments=QUORUM)
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))


def get(url: str, queue: str) -> Any:
    """The body of the first message, which goes back to the queue when the connection closes."""
    with connected(url) as connection:
        return connection.channel().basic_get(queue)[2]


@pytest.mark.slow
def test_a_killed_and_a_stopped_server_come_back_on_their_port_with_what_was_durable_and_leave_nothing_in_the_end():
    with RabbitServer() as server:
        publish(server.url, "greetings", b"hello")
        server.sync()
        server.kill()
        assert not server.is_running
        with pytest.raises(AMQPConnectionError):
            get(server.url, "greetings")

        server.start()
        assert get(server.url, "greetings") == b"hello"

        server.restart()
        assert get(server.url, "greetings") == b"hello"

        port_mapper = server._epmd
        assert port_mapper.is_running
    assert not server.is_running
    assert not port_mapper.is_running
    assert not server.folder.exists()


@pytest.mark.slow
def test_a_tls_server_answers_to_who_trusts_its_authority_and_can_ask_for_a_certificate(tmp_path: Path):
    certificates = Certificates(tmp_path)

    def parameters(context: ssl.SSLContext) -> pika.ConnectionParameters:
        return pika.ConnectionParameters("127.0.0.1", server.port, ssl_options=pika.SSLOptions(context))

    with RabbitServer(tls=certificates, config=["ssl_options.fail_if_no_peer_cert = true"]) as server:
        assert server.url.startswith("amqps://")
        known = ssl.create_default_context(cafile=str(certificates.authority))
        known.load_cert_chain(certificates.client_certificate, certificates.client_key)
        with connected(parameters(known)) as connection:
            assert connection.is_open

        unknown = ssl.create_default_context(cafile=str(certificates.authority))
        for stranger in (unknown, ssl.create_default_context()):
            with pytest.raises((AMQPError, ssl.SSLError)), connected(parameters(stranger)):
                pass


def test_a_server_that_cannot_start_says_why_in_the_words_of_its_log():
    server = RabbitServer(config=["no_such_key = true"])
    with pytest.raises(ServerDown, match=r"ended with exit code 1 before it was ready(.|\n)*no_such_key"), server:
        pass
    assert not server.folder.exists()


def test_a_frozen_server_keeps_its_connections_and_answers_when_it_is_thawed(each_rabbitmq_server: RabbitServer):
    server = each_rabbitmq_server
    with connected(server.url) as connection, socket.create_connection(("127.0.0.1", server.port)) as newcomer:
        server.freeze()
        newcomer.settimeout(0.2)
        newcomer.sendall(b"AMQP\0\0\x09\x01")
        with pytest.raises(TimeoutError):
            newcomer.recv(1)

        server.thaw()

        newcomer.settimeout(PATIENCE)
        assert newcomer.recv(1)
        assert connection.channel().is_open


def test_a_vhost_and_a_user_are_made_with_rights_of_their_own(each_rabbitmq_server: RabbitServer):
    server = each_rabbitmq_server
    server.add_vhost("a vhost/of ours")
    server.add_user("ana", "p@ss word", vhost="a vhost/of ours", may="^ana")
    assert "ana" in server.ctl("list_users")
    with connected(server.url_with(vhost="a vhost/of ours")) as connection:
        connection.channel().queue_declare("anyone's")
    with connected(server.url_with(vhost="a vhost/of ours", user="ana", password="p@ss word")) as connection:
        connection.channel().queue_declare("ana's")
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().queue_declare("another's")
    with pytest.raises(AMQPConnectionError), connected(server.url_with(user="ana", password="wrong")):
        pass


def test_a_memory_alarm_blocks_who_publishes_until_it_is_cleared(each_rabbitmq_server: RabbitServer):
    told: list[str] = []
    with connected(each_rabbitmq_server.url) as connection:
        connection.add_on_connection_blocked_callback(lambda *_: told.append("blocked"))
        connection.add_on_connection_unblocked_callback(lambda *_: told.append("unblocked"))
        channel = connection.channel()
        for change, expected in [
            (each_rabbitmq_server.raise_memory_alarm, ["blocked"]),
            (each_rabbitmq_server.clear_memory_alarm, ["blocked", "unblocked"]),
        ]:
            change()
            if len(expected) == 1:
                channel.basic_publish("", "nowhere", b"")
            connection.process_data_events(PATIENCE)
            assert told == expected


def test_clients_are_told_why_their_connections_are_closed(each_rabbitmq_server: RabbitServer):
    with connected(each_rabbitmq_server.url) as connection:
        each_rabbitmq_server.close_all_connections("for a test")
        with pytest.raises(ConnectionClosedByBroker, match=r"320.*for a test"):
            connection.process_data_events(PATIENCE)


def test_what_an_operator_does_wrong_is_said(each_rabbitmq_server: RabbitServer):
    with pytest.raises(RuntimeError, match=r"no_such:thing\(\): .*undef"):
        each_rabbitmq_server.evaluate("no_such:thing()")
    with pytest.raises(RuntimeError, match="rabbitmqctl delete_vhost missing: "):
        each_rabbitmq_server.ctl("delete_vhost", "missing")


def test_each_test_has_a_prefix_of_its_own(rabbitmq_server: RabbitServer, rabbitmq_url: str):
    assert rabbitmq_url.startswith(rabbitmq_server.url + "?prefix=test-")


def test_a_test_runs_on_every_version_that_is_installed(each_rabbitmq_server: RabbitServer, each_rabbitmq_url: str):
    program = each_rabbitmq_server.program
    assert each_rabbitmq_server.evaluate("rabbit_misc:version()") == f'"{".".join(map(str, program.version))}"'
    assert program in programs()
    assert each_rabbitmq_url.startswith(each_rabbitmq_server.url)
