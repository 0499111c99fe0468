"""From a URL to the server that holds our keys: a fixed one, the master that Sentinel names, or a cluster's node.

All keys of one prefix are in one slot, so of a cluster one node at a time is spoken to, like any single server.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from carteiro.errors import BrokerUnavailable, ConfigurationError
from carteiro.ports.urls import (
    check_options,
    credentials,
    hidden,
    host_and_port,
    is_true,
    seconds_option,
    split_url,
    take_tls,
    tls_context,
    whole_number,
)

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_SECONDS: Final = 5.0


class Server(msgspec.Struct, frozen=True):
    """Where to connect. `path` is that of a Unix socket."""

    host: str = "localhost"
    port: int = _PORT
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix://{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Address(msgspec.Struct, frozen=True):
    """What a URL says. `tls` holds the `ssl_…` options; `timeout` and `connect_timeout` are in seconds."""

    kind: str
    servers: tuple[Server, ...]
    username: str | None
    password: str | None
    database: int
    service: str
    tls: Mapping[str, str] | None
    sentinel_username: str | None
    sentinel_password: str | None
    prefix: str
    timeout: float
    connect_timeout: float

    @property
    def base(self) -> str:
        """What every key begins with."""
        return f"{{{self.prefix}}}"

    def __str__(self) -> str:
        """Without the password: for errors and logs."""
        hosts = ",".join(map(str, self.servers))
        if self.kind == "unix":
            return hosts
        manner = "" if self.kind == "redis" else f"+{self.kind}"
        return f"{'redis' if self.tls is None else 'rediss'}{manner}://{hosts}"

    def context(self) -> ssl.SSLContext | None:
        """Raises ConfigurationError for a certificate or key that cannot be read."""
        return None if self.tls is None else tls_context(self.tls)


_OPTIONS: Final = frozenset(
    {"prefix", "timeout", "connect_timeout", "db", "username", "password", "sentinel_username", "sentinel_password"}
)


def parse(url: str) -> Address:
    """Raises ConfigurationError for what it does not understand."""
    parts = split_url(url)
    scheme, _, manner = parts.scheme.partition("+")
    kind = manner or ("unix" if scheme == "unix" else "redis")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = take_tls(url, options, "rediss")
    check_options(url, options, _OPTIONS)
    username, password, hosts = credentials(parts.netloc)
    path = unquote(parts.path)
    service = ""
    if kind == "sentinel":
        service, _, database = path.strip("/").partition("/")
        if not service:
            raise ConfigurationError(
                f"`{hidden(url)}` names no master: write it as redis+sentinel://host:26379,host:26379/mymaster/0"
            )
    elif kind == "unix":
        database = ""
        if hosts or not path:
            raise ConfigurationError(f"`{hidden(url)}` has no path of a socket: write it as unix:///path/redis.sock")
    else:
        database = path.strip("/")
    prefix = options.get("prefix", "carteiro")
    if not prefix or not prefix.isprintable() or set(prefix) & set("{} []"):
        raise ConfigurationError(f"`{prefix}` is no prefix for keys: take letters, digits, `-`, `_`, `.` or `:`")
    return Address(
        kind=kind,
        servers=(Server(path=path),) if kind == "unix" else tuple(_servers(url, hosts, kind)),
        username=options.get("username", username),
        password=options.get("password", password),
        database=_database(url, kind, options.get("db", database or "0")),
        service=service,
        tls=tls,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        prefix=prefix,
        timeout=seconds_option(url, options.get("timeout"), _SECONDS),
        connect_timeout=seconds_option(url, options.get("connect_timeout"), _SECONDS),
    )


async def locate(address: Address) -> Server:
    """The server that takes our writes now. Raises BrokerUnavailable."""
    if address.kind == "sentinel":
        return await _master(address)
    if address.kind == "cluster":
        return await _node(address)
    return address.servers[0]


async def _master(address: Address) -> Server:
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError

    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(server.host, server.port) for server in address.servers],
        sentinel_kwargs={
            **_client_options(address, address.sentinel_username, address.sentinel_password),
            "retry": Retry(NoBackoff(), 0),
        },
    )
    try:
        host, port = await sentinel.discover_master(address.service)
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(f"no sentinel of `{address}` knows a master `{address.service}`: {error}") from error
    finally:
        for one in sentinel.sentinels:
            await one.aclose()
    return Server(host, port)


async def _node(address: Address) -> Server:
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.exceptions import RedisClusterException, RedisError

    options = _client_options(address, address.username, address.password)
    cluster = RedisCluster(
        startup_nodes=[ClusterNode(server.host, server.port) for server in address.servers], **options
    )
    try:
        await cluster.initialize()
        node = cluster.get_node_from_key(address.base)
    except (RedisError, RedisClusterException, OSError) as error:
        raise BrokerUnavailable(f"the cluster at `{address}` cannot be reached: {error}") from error
    finally:
        await cluster.aclose()
    if node is None:
        raise BrokerUnavailable(f"the cluster at `{address}` has no node for the slot of `{address.base}`")
    return Server(str(node.host), int(node.port))


def _client_options(address: Address, username: str | None, password: str | None) -> dict[str, Any]:
    patience = address.connect_timeout / (len(address.servers) + 1)  # one that hangs leaves time for the others
    options: dict[str, Any] = {
        "username": username,
        "password": password,
        "socket_timeout": patience,
        "socket_connect_timeout": patience,
    }
    if address.tls is not None:
        options |= {"ssl": True, **address.tls}
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = is_true(options["ssl_check_hostname"])
    return options


def _servers(url: str, hosts: str, kind: str) -> Sequence[Server]:
    default = _SENTINEL_PORT if kind == "sentinel" else _PORT
    servers = [Server(*host_and_port(url, one, default)) for one in hosts.split(",")]
    if kind == "redis" and len(servers) > 1:
        raise ConfigurationError(
            f"`{hidden(url)}` names several servers: write redis+sentinel:// or redis+cluster:// for these"
        )
    return servers


def _database(url: str, kind: str, text: str) -> int:
    number = whole_number(url, text, "database")
    if number and kind == "cluster":
        raise ConfigurationError(f"`{hidden(url)}` names database {number}: a cluster has only database 0")
    return number
