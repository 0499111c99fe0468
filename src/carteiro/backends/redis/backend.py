"""From a `redis://` URL to a backend."""

from __future__ import annotations

from collections.abc import Sequence

from carteiro.backends.redis.address import parse
from carteiro.backends.redis.broker import RedisBroker
from carteiro.backends.redis.doctor import examine
from carteiro.backends.redis.link import Link
from carteiro.backends.redis.server import Server
from carteiro.backends.redis.store import RedisStore
from carteiro.ports.broker import Check
from carteiro.ports.clock import Clock


def open_backend(url: str, *, clock: Clock) -> RedisBackend:
    """`redis://[user:password@]host:port/db`, `rediss://` for TLS, `unix:///path`, and Sentinel or Cluster:
    `redis+sentinel://host,host/master/db`, `redis+cluster://host,host` (each also as `rediss+…`).

    Options: `prefix` of all keys (`carteiro`), `timeout` and `connect_timeout` in seconds, and those of TLS
    (`ssl_ca_certs`, `ssl_certfile`, …). Connects nowhere yet. Raises ConfigurationError for what it does not know.
    """
    return RedisBackend(url, clock)


class RedisBackend:
    """One server, or a set of them with one master, as broker and store."""

    def __init__(self, url: str, clock: Clock) -> None:
        address = parse(url)
        self._url, self._clock = url, clock
        self._server = Server(Link(address), clock)
        self.store = RedisStore(self._server)
        self.broker = RedisBroker(self._server, self.store)

    async def doctor(self) -> Sequence[Check]:
        """By a connection of its own, so that it may be asked while the broker works."""
        another = RedisBackend(self._url, self._clock)
        return await examine(another.broker, another._server.link)
