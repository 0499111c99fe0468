"""Where a queue is: for each type the keys that it takes, and how they become the URL of a broker.

A further system is a further model here, and a name in `SYSTEMS`. A type that is not among them is a backend that
someone has installed: it is known by its URL's scheme, and takes the whole URL.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlunsplit

from pydantic import Field, SecretStr, model_validator

from carteiro.config.options import PositiveLength, QueueOptions, wrong
from carteiro.errors import ConfigurationError
from carteiro.ports.urls import split_url


class Queue(QueueOptions):
    """A queue, and the broker that it is on."""

    query: ClassVar[tuple[str, ...]] = ()
    """The keys that are options of the URL, by the same name."""

    def url(self) -> str:
        """The URL of its broker, with whatever secret it takes."""
        raise NotImplementedError

    def _query(self) -> dict[str, str]:
        given = {key: getattr(self, key) for key in self.query}
        return {key: _as_text(value) for key, value in given.items() if value is not None}


class ServerQueue(Queue):
    """A queue on a server: a host, and what connecting to it takes."""

    schemes: ClassVar[tuple[str, str]]
    """Without and with TLS."""
    other_schemes: ClassVar[tuple[str, ...]] = ()
    """Which a whole URL may have, too."""
    path: ClassVar[str]
    """The key that is the URL's path."""
    query: ClassVar[tuple[str, ...]] = (
        "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs",
        "ssl_check_hostname", "ssl_ciphers", "prefix", "connect_timeout",
    )  # fmt: skip

    broker_url: SecretStr = SecretStr("localhost")
    """The server's host, several hosts with commas between them, or a whole URL."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The server's port; the system's own if nothing is said."""
    username: str | None = None
    """Who connects."""
    password: SecretStr | None = None
    """Best as a variable: `${BROKER_PASSWORD}`."""
    ssl: bool = False
    """Whether the connection is encrypted, and the server's certificate checked."""
    ssl_ca_certs: str | None = None
    """The file with the certificates of the authorities to trust; the system's own if nothing is said."""
    ssl_ca_path: str | None = None
    """A folder with such certificates."""
    ssl_certfile: str | None = None
    """The file with this client's certificate."""
    ssl_keyfile: str | None = None
    """The file with its key, if that is not in the same file."""
    ssl_password: SecretStr | None = None
    """The key's password."""
    ssl_cert_reqs: Literal["required", "optional", "none"] | None = None
    """Whether the server must show a certificate."""
    ssl_check_hostname: bool | None = None
    """Whether the certificate must be for the host that is connected to."""
    ssl_ciphers: str | None = None
    """The ciphers that may be used, as OpenSSL writes them."""
    prefix: str | None = None
    """What the names of all that carteiro keeps there begin with."""
    connect_timeout: PositiveLength | None = None
    """How long connecting may take."""

    @model_validator(mode="after")
    def _fits_together(self) -> ServerQueue:
        given = self.broker_url.get_secret_value()
        if "://" in given:
            self._check_beside_url(given)
            return self
        if not given or set(given) & set("/@?#% \t\n") or not given.isprintable():
            raise wrong(
                f"is a host, or a whole URL that begins with {self.schemes[0]}://: what else belongs to the connection "
                f"has keys of its own, such as username, password and {self.path}",
                key="broker_url",
            )
        tls = [key for key in self.query if key.startswith("ssl_") and getattr(self, key) is not None]
        if tls and not self.ssl:
            raise wrong("needs `ssl: true` beside it", key=tls[0])
        return self

    def url(self) -> str:
        given, query = self.broker_url.get_secret_value(), urlencode(self._query())
        if "://" in given:
            parts = split_url(given)
            both = "&".join(part for part in (parts.query, query) if part)
            return urlunsplit(parts._replace(netloc=self._user() + parts.netloc, query=both))
        hosts = ",".join(self._with_port(host.strip()) for host in given.split(","))
        path = getattr(self, self.path)
        return urlunsplit(
            (self.schemes[self.ssl], self._user() + hosts, "" if path is None else quote(str(path), safe=""), query, "")
        )

    def _check_beside_url(self, url: str) -> None:
        """What a whole URL says is not said again by a key."""
        try:
            parts = split_url(url)
        except ConfigurationError as error:
            raise wrong(f"does not fit: {error}", key="broker_url") from None
        if parts.scheme not in (*self.schemes, *self.other_schemes):
            raise wrong(f"does not begin with {self.schemes[0]}://, as the type says", key="broker_url")
        if self.ssl and parts.scheme == self.schemes[0]:
            raise wrong(f"needs a broker_url that begins with {self.schemes[1]}://, or a mere host", key="ssl")
        said = dict.fromkeys(("port", self.path), "a whole URL says it itself")
        if "@" in parts.netloc:
            said |= dict.fromkeys(("username", "password"), "the URL has a user already")
        said |= dict.fromkeys(dict(parse_qsl(parts.query)), "the URL has this option already")
        for key, why in said.items():
            if key in self.model_fields_set:
                raise wrong(f"is too much beside this broker_url, for {why}: drop one of them", key=key)

    def _user(self) -> str:
        if self.username is None and self.password is None:
            return ""
        password = "" if self.password is None else f":{quote(self.password.get_secret_value(), safe='')}"
        return f"{quote(self.username or '', safe='')}{password}@"

    def _with_port(self, host: str) -> str:
        if host.count(":") > 1 and not host.startswith("["):
            host = f"[{host}]"  # an IPv6 address
        has_port = ":" in host.rpartition("]")[2]
        return host if self.port is None or has_port else f"{host}:{self.port}"


class RabbitQueue(ServerQueue):
    """A queue on RabbitMQ."""

    schemes = ("amqp", "amqps")
    path = "vhost"
    query = (*ServerQueue.query, "heartbeat", "auth")

    type: Literal["rabbitmq"] = "rabbitmq"
    vhost: str | None = None
    """The virtual host; `/` if nothing is said."""
    heartbeat: PositiveLength | None = None
    """How long a connection may be silent before both sides take it for lost."""
    auth: Literal["password", "certificate"] | None = None
    """How the client says who it is: by a password, or with TLS by its certificate."""


class RedisQueue(ServerQueue):
    """A queue on Redis. Sentinel, Cluster and Unix sockets take a whole URL."""

    schemes = ("redis", "rediss")
    other_schemes = ("unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
    path = "db"

    type: Literal["redis"] = "redis"
    db: Annotated[int, Field(ge=0)] | None = None
    """The number of the database; 0 if nothing is said."""


class SqliteQueue(Queue):
    """A queue in a file: the embedded broker."""

    query = ("synchronous", "busy_timeout")

    type: Literal["sqlite"] = "sqlite"
    broker_url: str = "carteiro.db"
    """The file, from the working directory, or the whole URL."""
    synchronous: Literal["full", "normal"] | None = None
    """Whether each commit waits for the disk."""
    busy_timeout: PositiveLength | None = None
    """How long to wait for another process that writes."""

    @model_validator(mode="after")
    def _is_a_file(self) -> SqliteQueue:
        if not self.broker_url.startswith("sqlite:///") and ("://" in self.broker_url or "?" in self.broker_url):
            raise wrong("is a file, such as shop.db, or a URL such as sqlite:///shop.db", key="broker_url")
        if "?" in self.broker_url and self._query():
            raise wrong("has options, and there are keys for them: drop one of them", key="broker_url")
        return self

    def url(self) -> str:
        file, query = self.broker_url.removeprefix("sqlite:///"), urlencode(self._query())
        return f"sqlite:///{file}" + (f"?{query}" if query else "")


class MemoryQueue(Queue):
    """A queue in the memory of this process."""

    type: Literal["memory"] = "memory"
    broker_url: str = ""
    """A name, for apps of one process that share a broker."""

    @model_validator(mode="after")
    def _is_a_name(self) -> MemoryQueue:
        if "://" in self.broker_url.removeprefix("memory://"):
            raise wrong("is a name, or a URL such as memory://shop", key="broker_url")
        return self

    def url(self) -> str:
        return f"memory://{self.broker_url.removeprefix('memory://')}"


class OtherQueue(Queue):
    """A queue on a system that someone's own backend serves."""

    type: str
    broker_url: SecretStr
    """The whole URL, as the backend's own documentation has it."""

    @model_validator(mode="after")
    def _is_a_url(self) -> OtherQueue:
        if not self.url().startswith((f"{self.type}://", f"{self.type}+")):
            raise wrong(f"is a whole URL that begins with {self.type}://", key="broker_url")
        return self

    def url(self) -> str:
        return self.broker_url.get_secret_value()


SYSTEMS: Final[dict[str, type[Queue]]] = {
    "rabbitmq": RabbitQueue,
    "redis": RedisQueue,
    "sqlite": SqliteQueue,
    "memory": MemoryQueue,
}


def system(kind: str) -> type[Queue] | None:
    """The model of the queues of this type; None where there is no such type."""
    return SYSTEMS.get(kind) or (OtherQueue if kind in _others() else None)


def types() -> set[str]:
    """All that `system` knows."""
    return SYSTEMS.keys() | _others()


def has_key(key: str) -> bool:
    """Whether the queues of some type have it."""
    return any(key in model.model_fields for model in SYSTEMS.values())


def _others() -> set[str]:
    """What installed backends of others add."""
    from importlib.metadata import entry_points

    from carteiro.ports.registry import GROUP

    return {point.name for point in entry_points(group=GROUP) if not point.value.startswith("carteiro.")}


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
