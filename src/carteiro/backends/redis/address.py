"""From a URL to the server that holds our keys: a fixed one, the master that Sentinel names, or a cluster's node.

All keys of one prefix are in one slot, so of a cluster one node at a time is spoken to, like any single server.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from carteiro.errors import BrokerUnavailable, ConfigurationError

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_LAST_PORT: Final = 65_535
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
    parts = _parts(url)
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
    if secure:
        _demand(tls)
    username, password, hosts = _split(parts.netloc)
    path = unquote(parts.path)
    service = ""
    if kind == "sentinel":
        service, _, database = path.strip("/").partition("/")
        if not service:
            raise ConfigurationError(
                f"`{_hidden(url)}` names no master: write it as redis+sentinel://host:26379,host:26379/mymaster/0"
            )
    elif kind == "unix":
        database = ""
        if hosts or not path:
            raise ConfigurationError(f"`{_hidden(url)}` has no path of a socket: write it as unix:///path/redis.sock")
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
            options["ssl_check_hostname"] = _is_true(options["ssl_check_hostname"])
    return options


def _context(tls: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    demand = _demand(tls)
    context.check_hostname = demand != ssl.CERT_NONE and _is_true(tls.get("ssl_check_hostname", "true"))
    context.verify_mode = demand
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


def _demand(tls: Mapping[str, str]) -> ssl.VerifyMode:
    """What `ssl_cert_reqs` asks of the server's certificate."""
    asked = tls.get("ssl_cert_reqs", "required")
    levels = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
    if asked not in levels:
        raise ConfigurationError(f"ssl_cert_reqs is `{asked}`, and none of: {', '.join(levels)}")
    return levels[asked]


def _parts(url: str) -> SplitResult:
    """The URL in its parts; what cannot be one is not shown, since any part of it may be one of a password."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"the broker's URL, `{url.partition(':')[0]}://…`, cannot be read: {error}") from None
    if parts.fragment or _is_torn(parts):
        raise ConfigurationError(
            f"the broker's URL, `{parts.scheme}://…`, cannot be read: within a user, a password or an option, "
            "percent-encode what is neither a letter nor a digit, such as `/` as %2F, `?` as %3F and `#` as %23"
        )
    return parts


def _is_torn(parts: SplitResult) -> bool:
    """Whether a `/` or a `?` in a password has ended the part of the URL that the password stands in."""
    place = parts.netloc
    if not place or "@" in place:
        return False
    port = place.rpartition("]")[2].partition(":")[2]
    return "@" in parts.path or ("@" in parts.query and (place[0] == ":" or bool(port and not port.isdecimal())))


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
        number = _number(url, port, "port")
        if number > _LAST_PORT:
            raise ConfigurationError(f"`{_hidden(url)}` has `{port}` for its port: the last one is {_LAST_PORT}")
        servers.append(Server(host.strip("[]") or "localhost", number))
    if kind == "redis" and len(servers) > 1:
        raise ConfigurationError(
            f"`{_hidden(url)}` names several servers: write redis+sentinel:// or redis+cluster:// for these"
        )
    return servers


def _database(url: str, kind: str, text: str) -> int:
    number = _number(url, text, "database")
    if number and kind == "cluster":
        raise ConfigurationError(f"`{_hidden(url)}` names database {number}: a cluster has only database 0")
    return number


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
    """The URL without its password and its options, some of which are passwords too."""
    parts = urlsplit(url)
    credentials, separator, hosts = parts.netloc.rpartition("@")
    shown = f"{credentials.partition(':')[0]}:***@{hosts}" if separator else hosts
    return f"{parts.scheme}://{shown}{parts.path}"
