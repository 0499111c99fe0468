"""From an `amqp://` URL to a backend."""

from __future__ import annotations

from collections.abc import Sequence

from carteiro.backends.rabbitmq.address import parse
from carteiro.backends.rabbitmq.broker import RabbitBroker
from carteiro.backends.rabbitmq.doctor import examine
from carteiro.backends.rabbitmq.server import Server
from carteiro.ports.broker import Check
from carteiro.ports.clock import Clock


def open_backend(url: str, *, clock: Clock) -> RabbitBackend:
    """`amqp://[user:password@]host:port/vhost`, `amqps://` for TLS; several nodes of a cluster as `host,host:port`.

    Options: `heartbeat`, `timeout` and `connect_timeout` in seconds, `prefix` of exchanges and queues (`carteiro`), and
    those of TLS (`ssl_ca_certs`, `ssl_certfile`, …; `auth=certificate` lets the certificate say who it is). Connects
    nowhere yet. Raises ConfigurationError for what it does not know.
    """
    return RabbitBackend(url, clock)


class RabbitBackend:
    """One server, or a cluster, as broker; it keeps no state."""

    store = None

    def __init__(self, url: str, clock: Clock) -> None:
        self._address, self._clock = parse(url), clock
        self.broker = RabbitBroker(Server(self._address, clock))

    async def doctor(self) -> Sequence[Check]:
        """By connections of its own, so that it may be asked while the broker works."""
        server = Server(self._address, self._clock)
        return await examine(RabbitBroker(server), server)
