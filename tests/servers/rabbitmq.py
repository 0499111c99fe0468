"""RabbitMQ, as it is installed here: which versions there are, and one of them as a test holds it."""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack
from urllib.parse import quote

from tests.servers.certificates import Certificates
from tests.servers.process import PATIENCE, ServerProcess, free_port, new_folder
from tests.servers.rabbitmq_unpacked import Unpacked
from tests.servers.redis import with_query
from tests.servers.system import DebianPackage, System, installed

OLDEST = (3, 10)
"""The oldest RabbitMQ that carteiro supports."""

ADVANCED = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}]."
"""Its advanced.config: what falls due while a server starts is tried again after 5 s, and not after 3 minutes."""

_NODE = "carteiro@localhost"


@dataclass(frozen=True, slots=True)
class Program:
    """A RabbitMQ and the Erlang that it runs on."""

    home: Path
    """`rabbitmq_server-…`, which holds `sbin`, `escript` and `plugins`."""
    erlang: Path
    """The folder of `erl`, `erl_call` and `epmd`."""
    version: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"rabbitmq-{'.'.join(map(str, self.version))}"


@functools.cache
def programs() -> tuple[Program, ...]:
    """What is installed, one of each version, what is on the PATH before the rest."""
    found: dict[str, Program] = {}
    for script in installed("rabbitmq-server"):
        program = _look_at(script.resolve())
        if program is not None and program.version >= OLDEST:
            found.setdefault(program.name, program)
    return tuple(found.values())


def _look_at(script: Path) -> Program | None:
    """None if there is no Erlang for it."""
    # Itself a part of its home, or, on Debian, a wrapper in a folder beside `lib`.
    homes = [script.parents[1], *sorted(script.parents[1].glob("lib/rabbitmq_server-*"))]
    for home in homes:
        for rabbit in home.glob("plugins/rabbit-*.*.*"):
            version = re.fullmatch(r"rabbit-(\d+)\.(\d+)\.(\d+)", rabbit.name)
            if version and (erlang := _erlang_of(home)):
                return Program(home, erlang, tuple(map(int, version.groups())))
    return None


def _erlang_of(home: Path) -> Path | None:
    """The one that was installed with it, or else that on the PATH."""
    for folder in home.parents:
        if (folder / "lib/erlang/bin/erl").exists():
            return folder / "lib/erlang/bin"
    found = shutil.which("erl")
    return Path(found).resolve().parent if found else None


RABBITMQ = System(
    "rabbitmq",
    what="RabbitMQ server (3.10 or later)",
    is_here=lambda: bool(programs()),
    hint="`apt-get install rabbitmq-server`, `brew install rabbitmq`, or what your system calls it",
    # Debian 12 has 3.10, and Debian 13 has 4.0.
    offers=(DebianPackage("rabbitmq-server", "rabbitmq-server"), Unpacked("trixie")),
)


class Options(TypedDict, total=False):
    """How a server is set up.

    - `program`: which one; by default the first that there is.
    - `tls`: TLS on its port, and nothing else there. Clients may show a certificate, which is then looked at; that
      they must is the line `ssl_options.fail_if_no_peer_cert = true` of `config`.
    - `config`: further lines of rabbitmq.conf, stronger than what we set.
    """

    program: Program
    tls: Certificates
    config: Sequence[str]


class RabbitServer(ServerProcess):
    """A node on a free port of 127.0.0.1; `with` starts it, and leaves nothing behind. Its user is guest.

    What is durable survives `stop`, `kill` and `start`; for quorum queues see `sync`. It is ready after three (4.0) to
    six seconds (3.10), most of them of CPU, so tests that do it no harm share one. It has a port mapper (epmd) of its
    own, since Erlang would otherwise leave one running for good.

    Raises LookupError if there is no RabbitMQ here.
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        self.options = options
        self.program = options.get("program") or pick_program()
        self.port = free_port()
        self._erlang_port = free_port()
        self._cookie = secrets.token_hex(16)
        self._epmd = _PortMapper(self.program)
        folder = new_folder("rabbitmq")
        self._environment = self._lay_out(Path(folder.name))
        super().__init__(
            f"{self.program.name} on port {self.port}",
            folder,
            self._command_line("rabbitmq-server"),
            ready=self._answers,
        )

    # -- how to reach it ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """`amqp://…` or `amqps://…`, with its user and all that TLS needs; its path is that of the vhost `/`."""
        return self.url_with()

    def url_with(
        self, *, port: int | None = None, vhost: str = "/", user: str = "guest", password: str = "guest"
    ) -> str:
        """Its URL, but with the port of a proxy, or another vhost, user or password."""
        tls = self.options.get("tls")
        who = f"{quote(user, safe='')}:{quote(password, safe='')}"
        url = f"{'amqps' if tls else 'amqp'}://{who}@127.0.0.1:{port or self.port}/{quote(vhost, safe='')}"
        return with_query(url, ssl_ca_certs=str(tls.authority)) if tls else url

    # -- what an operator does ---------------------------------------------------------------------------------------

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints; raises RuntimeError with its complaint. It takes a second: see `evaluate`."""
        done = subprocess.run(self._command_line("rabbitmqctl", "--quiet", *arguments), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def evaluate(self, expression: str) -> str:
        """The value of an Erlang expression, computed in the node: 10 ms, where rabbitmqctl takes a second.

        Raises ConnectionError if the node does not answer, RuntimeError if the expression fails.
        """
        call = [str(self.program.erlang / "erl_call"), "-address", f"127.0.0.1:{self._erlang_port}", "-c", self._cookie]
        # By default they all have one name, and of two that come at once the node refuses one, or answers it never.
        name = f"call{secrets.token_hex(8)}"
        done = subprocess.run(
            [*call, "-h", name, "-timeout", f"{PATIENCE:.0f}", "-e"],
            input=f"{expression}.\n",
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ConnectionError(f"{self.name} does not answer: {(done.stderr + done.stdout).strip()}")
        if not (value := re.fullmatch(r"\{ok, (.*)\}\s*", done.stdout, re.DOTALL)):
            raise RuntimeError(f"{expression}: {done.stdout.strip()}")
        return value[1]

    def add_vhost(self, name: str) -> None:
        """Another vhost, in which guest has all rights too."""
        self.evaluate(f'ok = rabbit_vhost:add({_binary(name)}, <<"tests">>)')
        self.allow("guest", vhost=name)

    def add_user(self, name: str, password: str, *, vhost: str = "/", may: str = ".*") -> None:
        """A user with rights on what the pattern `may` matches in the vhost."""
        self.evaluate(f'ok = rabbit_auth_backend_internal:add_user({_binary(name)}, {_binary(password)}, <<"tests">>)')
        self.allow(name, vhost=vhost, may=may)

    def allow(self, user: str, *, vhost: str = "/", may: str = ".*") -> None:
        """Let a user configure, write and read what the pattern matches in the vhost, and nothing else there."""
        rights = ", ".join([_binary(may)] * 3)
        who = f"{_binary(user)}, {_binary(vhost)}"
        self.evaluate(f'ok = rabbit_auth_backend_internal:set_permissions({who}, {rights}, <<"tests">>)')

    def messages(self, vhost: str = "/") -> dict[str, int]:
        """How many each quorum queue of the vhost holds, those that are delivered and not acked included.

        Waits for queues that have no leader yet. Raises ConnectionError if the node does not answer.
        """
        count = "element(2, element(2, ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1)))"
        counting = (
            f"[{{binary_to_list(element(4, amqqueue:get_name(Q))), {count}}} || "
            f"Q <- rabbit_amqqueue:list({_binary(vhost)}), "
            "amqqueue:get_type(Q) =:= rabbit_quorum_queue]"
        )
        counts: dict[str, int] = {}

        def count_them() -> bool:
            told = re.findall(r'"([^"]*)",\s*(\d+)', self.evaluate(counting))  # a binary of more than 30 bytes is cut
            counts.update((name, int(number)) for name, number in told)
            return True

        self.until(count_them, "able to count", not_yet=RuntimeError)
        return counts

    def sync(self) -> None:
        """Have on the disk which quorum queues there are.

        Before RabbitMQ 4 a node that is killed within half a second of a queue's declaration comes back with an empty
        one without a leader, which answers nobody ever (Ra kept `names.dets` in memory for so long: rabbitmq/ra#443).
        """
        self.evaluate("[ok = dets:sync(Table) || Table <- dets:all()]")

    def close_all_connections(self, reason: str = "closed by a test") -> None:
        """Close its clients' connections in good order: they are told why (320, CONNECTION_FORCED)."""
        self.evaluate(f'rabbit_networking:close_all_connections("{reason}")')

    def raise_memory_alarm(self) -> None:
        """From now on it reads nothing from connections that publish, and tells them that they are blocked."""
        self._set_memory_limit("{absolute, 1}", alarms=True)

    def clear_memory_alarm(self) -> None:
        self._set_memory_limit("0.6", alarms=False)

    # -- its life ----------------------------------------------------------------------------------------------------

    def log(self, lines: int = 100) -> str:
        """The last lines that it wrote: many, since Erlang follows a reason with long reports of who died of it."""
        return super().log(lines)

    def start(self) -> None:
        if not self._epmd.is_running:
            self._epmd.start()
        super().start()

    def close(self) -> None:
        super().close()
        self._epmd.close()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _answers(self) -> bool:
        # It listens just before all of it runs; asking before it does would cost it time.
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return self.evaluate("rabbit:is_running()") == "true"

    def _set_memory_limit(self, limit: str, *, alarms: bool) -> None:
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({limit})")
        self.until(lambda: (self.evaluate("rabbit_alarm:get_alarms()") != "[]") is alarms, "aware of its memory limit")

    def _command_line(self, script: str, *arguments: str) -> list[str]:
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        env = shutil.which("env") or "/usr/bin/env"
        return [env, *variables, f"{self._environment['RABBITMQ_SCRIPTS_DIR']}/{script}", *arguments]

    def _lay_out(self, folder: Path) -> Mapping[str, str]:
        """Write the files that it starts from, and return the environment in which it and rabbitmqctl find them."""
        cookie = folder / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        (folder / "rabbitmq.conf").write_text("\n".join(self._config()) + "\n")
        (folder / "advanced.config").write_text(f"{ADVANCED}\n")
        (folder / "plugins").write_text("[].")
        _trim(self.program.home, folder / "home")
        return {
            "HOME": str(folder),
            "PATH": f"{self.program.erlang}:{os.environ.get('PATH', os.defpath)}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_DIST_PORT": str(self._erlang_port),
            "RABBITMQ_SCRIPTS_DIR": str(folder / "home" / "sbin"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            # The script then becomes the node, whose process is the one that we signal; else it stays above it.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _config(self) -> list[str]:
        lines = ["log.console.level = warning", "disk_free_limit.absolute = 50MB"]
        listener = f"127.0.0.1:{self.port}"
        if tls := self.options.get("tls"):
            lines += [
                "listeners.tcp = none",
                f"listeners.ssl.1 = {listener}",
                f"ssl_options.cacertfile = {tls.authority}",
                f"ssl_options.certfile = {tls.certificate}",
                f"ssl_options.keyfile = {tls.key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = false",
            ]
        else:
            lines.append(f"listeners.tcp.1 = {listener}")
        return [*lines, *self.options.get("config", ())]


class _PortMapper(ServerProcess):
    """Erlang's epmd, for one node: in the foreground, and gone with the test."""

    def __init__(self, program: Program) -> None:
        self.port = free_port()
        super().__init__(
            f"epmd on port {self.port}",
            new_folder("epmd"),
            [str(program.erlang / "epmd"), "-address", "127.0.0.1", "-port", str(self.port)],
            ready=self._answers,
        )

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True


def pick_program() -> Program:
    """The first program that there is. Raises LookupError if there is none."""
    if not programs():
        raise LookupError(RABBITMQ.missing)
    return programs()[0]


def _trim(home: Path, to: Path) -> None:
    """RabbitMQ's home without its plugins: Erlang looks for each module in every folder of it.

    Measured on two cores: it starts in 5.3 s instead of 8.9 s.
    """
    (to / "plugins").mkdir(parents=True)
    for name in ("sbin", "escript"):
        (to / name).symlink_to(home / name)
    needed, kept = ["rabbit"], set[str]()
    while needed:
        name = needed.pop()
        for manifest in home.glob(f"plugins/{name}-*/ebin/{name}.app"):
            if name not in kept:
                kept.add(name)
                (to / "plugins" / manifest.parents[1].name).symlink_to(manifest.parents[1])
                if applications := re.search(r"\{applications,\s*\[([^\]]*)", manifest.read_text()):
                    needed += re.findall(r"\w+", applications[1])


def _binary(text: str) -> str:
    """As Erlang writes it."""
    return f"<<{','.join(map(str, text.encode()))}>>"
