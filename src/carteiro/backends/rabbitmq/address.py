"""From a URL to the servers of one RabbitMQ cluster: any of them will do."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from carteiro.errors import ConfigurationError
from carteiro.ports.urls import (
    check_options,
    credentials,
    hidden,
    host_and_port,
    seconds_option,
    split_url,
    take_tls,
    tls_context,
)

_PORT: Final = 5672
_TLS_PORT: Final = 5671
_HEARTBEAT: Final = 30.0
_TIMEOUT: Final = 30.0
_CONNECT_TIMEOUT: Final = 5.0
_OPTIONS: Final = frozenset({"prefix", "heartbeat", "timeout", "connect_timeout", "auth"})
DEFAULT_PREFIX: Final = "carteiro"


class Server(msgspec.Struct, frozen=True):
    """One node of the cluster."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Address(msgspec.Struct, frozen=True):
    """What a URL says. `tls` holds the `ssl_…` options; times are in seconds."""

    servers: tuple[Server, ...]
    username: str
    password: str
    vhost: str
    tls: Mapping[str, str] | None
    external: bool
    """Whether the client's certificate says who it is, instead of a name and password."""
    prefix: str
    heartbeat: float
    timeout: float
    connect_timeout: float

    def __str__(self) -> str:
        """Without the password: for errors and logs."""
        vhost = "" if self.vhost == "/" else f"/{self.vhost}"
        return f"{'amqp' if self.tls is None else 'amqps'}://{','.join(map(str, self.servers))}{vhost}"

    def context(self) -> ssl.SSLContext | None:
        """Raises ConfigurationError for a certificate or key that cannot be read."""
        return None if self.tls is None else tls_context(self.tls)


def parse(url: str) -> Address:
    """Raises ConfigurationError for what it does not understand."""
    parts = split_url(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = take_tls(url, options, "amqps")
    check_options(url, options, _OPTIONS)
    username, password, hosts = credentials(parts.netloc)
    default = _PORT if tls is None else _TLS_PORT
    vhost = unquote(parts.path.removeprefix("/"))
    if "/" in parts.path.removeprefix("/"):
        raise ConfigurationError(
            f"`{hidden(url)}` has a `/` in its virtual host: write that one as %2F, as in amqp://host/%2Fshop"
        )
    prefix = options.get("prefix", DEFAULT_PREFIX)
    if not prefix or not prefix.isprintable() or set(prefix) & set(".*#@$ "):
        raise ConfigurationError(f"`{prefix}` is no prefix for queues: take letters, digits, `-`, `_` or `:`")
    external = options.get("auth", "password") == "certificate"
    if options.get("auth", "password") not in ("password", "certificate") or (external and tls is None):
        raise ConfigurationError(f"`{hidden(url)}`: auth= is `password`, or with amqps:// also `certificate`")
    return Address(
        servers=tuple(Server(*host_and_port(url, one, default)) for one in hosts.split(",")),
        username="guest" if username is None else username,
        password="guest" if password is None else password,
        vhost=vhost or "/",
        tls=tls,
        external=external,
        prefix=prefix,
        heartbeat=seconds_option(url, options.get("heartbeat"), _HEARTBEAT),
        timeout=seconds_option(url, options.get("timeout"), _TIMEOUT),
        connect_timeout=seconds_option(url, options.get("connect_timeout"), _CONNECT_TIMEOUT),
    )
