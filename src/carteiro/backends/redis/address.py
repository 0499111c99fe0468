"""From a URL to the server that holds our keys: a fixed one, the master that Sentinel names, or a cluster's node.

All keys of one prefix are in one slot, so of a cluster one node at a time is spoken to, like any single server.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from carteiro.errors import BrokerUnavailable, ConfigurationError

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_SECONDS: Final = 5.0


class Server(msgspec.Struct, frozen=True):
    """Where to connect. `path` is that of a Unix socket."""

    host: str = "localhost"
    port: int = _PORT
    path: str | None = None

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path is not None else f"{self.host}:{self.port}"


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
        return hosts if self.kind == "unix" else f"{self.kind}://{hosts}"

    def context(self) -> ssl.SSLContext | None:
        """Raises ConfigurationError for a certificate or key that cannot be read."""
        return None if self.tls is None else _context(self.tls)


_TLS_OPTIONS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_ca_data",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_cert_reqs",
        "ssl_check_hostname",
        "ssl_ciphers",
    }
)
_NOT_SHOWN: Final = frozenset({"ssl_password", "ssl_ca_data"})
_OPTIONS: Final = frozenset(
    {"prefix", "timeout", "connect_timeout", "db", "username", "password", "sentinel_username", "sentinel_password"}
)


def parse(url: str) -> Address:
    """Raises ConfigurationError for what it does not understand."""
    parts = urlsplit(url)
    scheme, _, manner = parts.scheme.partition("+")
    kind = manner or ("unix" if scheme == "unix" else "redis")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    secure = scheme == "rediss"
    tls = {name: options.pop(name) for name in list(options) if name in _TLS_OPTIONS}
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        known = ", ".join(sorted(_OPTIONS | _TLS_OPTIONS))
        raise ConfigurationError(f"`{_hidden(url)}` has an option `{unknown[0]}` that is none of: {known}")
    if tls and not secure:
        raise ConfigurationError(f"`{_hidden(url)}` has TLS options, and is not rediss://")
    username, password, hosts = _split(parts.netloc)
    path = unquote(parts.path)
    service = ""
    if kind == "sentinel":
        service, _, database = path.strip("/").partition("/")
        if not service:
            raise ConfigurationError(
                f"`{_hidden(url)}` names no master: write it as redis+sentinel://host:26379,host:26379/mymaster/0"
            )
    else:
        database = "" if kind == "unix" else path.strip("/")
    prefix = options.get("prefix", "carteiro")
    if not prefix or not prefix.isprintable() or set(prefix) & set("{} []"):
        raise ConfigurationError(f"`{prefix}` is no prefix for keys: take letters, digits, `-`, `_`, `.` or `:`")
    return Address(
        kind=kind,
        servers=(Server(path=path),) if kind == "unix" else tuple(_servers(url, hosts, kind)),
        username=options.get("username", username),
        password=options.get("password", password),
        database=_number(url, options.get("db", database or "0"), "database"),
        service=service,
        tls=tls if secure else None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        prefix=prefix,
        timeout=_seconds(url, options.get("timeout")),
        connect_timeout=_seconds(url, options.get("connect_timeout")),
    )


async def locate(address: Address) -> Server:
    """The server that takes our writes now. Raises BrokerUnavailable."""
    if address.kind == "sentinel":
        return await _master(address)
    if address.kind == "cluster":
        return await _node(address)
    return address.servers[0]


async def _master(address: Address) -> Server:
    from redis.asyncio.sentinel import Sentinel
    from redis.exceptions import RedisError

    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(server.host, server.port) for server in address.servers],
        sentinel_kwargs=_client_options(address, address.sentinel_username, address.sentinel_password),
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
    from redis.exceptions import RedisError

    options = _client_options(address, address.username, address.password)
    cluster = RedisCluster(
        startup_nodes=[ClusterNode(server.host, server.port) for server in address.servers], **options
    )
    try:
        await cluster.initialize()
        node = cluster.get_node_from_key(address.base)
    except (RedisError, OSError) as error:
        raise BrokerUnavailable(f"the cluster at `{address}` cannot be reached: {error}") from error
    finally:
        await cluster.aclose()
    if node is None:
        raise BrokerUnavailable(f"the cluster at `{address}` has no node for the slot of `{address.base}`")
    return Server(str(node.host), int(node.port))


def _client_options(address: Address, username: str | None, password: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": username,
        "password": password,
        "socket_timeout": address.connect_timeout,
        "socket_connect_timeout": address.connect_timeout,
    }
    if address.tls is not None:
        options |= {"ssl": True, **address.tls}
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = _is_true(options["ssl_check_hostname"])
    return options


def _context(tls: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    demands = tls.get("ssl_cert_reqs", "required")
    levels = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
    if demands not in levels:
        raise ConfigurationError(f"ssl_cert_reqs is `{demands}`, and none of: {', '.join(levels)}")
    context.check_hostname = demands != "none" and _is_true(tls.get("ssl_check_hostname", "true"))
    context.verify_mode = levels[demands]
    try:
        if {"ssl_ca_certs", "ssl_ca_path", "ssl_ca_data"} & tls.keys():
            context.load_verify_locations(tls.get("ssl_ca_certs"), tls.get("ssl_ca_path"), tls.get("ssl_ca_data"))
        if "ssl_certfile" in tls:
            context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile"), tls.get("ssl_password"))
        if "ssl_ciphers" in tls:
            context.set_ciphers(tls["ssl_ciphers"])
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(f"{name}={value}" for name, value in tls.items() if name not in _NOT_SHOWN)
        raise ConfigurationError(f"the TLS options cannot be used ({error}): {named}") from error
    return context


def _split(netloc: str) -> tuple[str | None, str | None, str]:
    credentials, _, hosts = netloc.rpartition("@")
    username, separator, password = credentials.partition(":")
    return unquote(username) or None, unquote(password) if separator else None, hosts


def _servers(url: str, hosts: str, kind: str) -> Sequence[Server]:
    servers: list[Server] = []
    for one in hosts.split(","):
        host, separator, port = one.rpartition(":")
        if not separator or one.endswith("]"):
            host, port = one, str(_SENTINEL_PORT if kind == "sentinel" else _PORT)
        servers.append(Server(host.strip("[]") or "localhost", _number(url, port, "port")))
    if kind == "redis" and len(servers) > 1:
        raise ConfigurationError(
            f"`{_hidden(url)}` names several servers: write redis+sentinel:// or redis+cluster:// for these"
        )
    return servers


def _number(url: str, text: str, what: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"`{_hidden(url)}` has `{text}` for its {what}, which is no number")
    return int(text)


def _seconds(url: str, text: str | None) -> float:
    try:
        seconds = _SECONDS if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigurationError(f"`{_hidden(url)}` has `{text}` for a timeout, which is no number of seconds")
    return seconds


def _is_true(text: str) -> bool:
    return text.lower() not in ("false", "0", "no", "off")


def _hidden(url: str) -> str:
    """The URL without its password."""
    scheme, _, rest = url.partition("://")
    credentials, separator, place = rest.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0]}:***@{place}" if separator else url
