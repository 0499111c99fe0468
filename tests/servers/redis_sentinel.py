"""A master, its replica, and the sentinels that watch them, as a test holds them."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any, Self, Unpack

import redis

from tests.servers.process import ServerProcess, free_port, new_folder
from tests.servers.redis import Options, RedisServer, tls_lines
from tests.servers.redis_cluster import join_urls

SERVICE = "carteiro"
"""The name under which the sentinels know the master."""


class Sentinel(ServerProcess):
    """One sentinel. It takes its master for down after half a second of silence; so many of them must agree."""

    def __init__(self, master: RedisServer, quorum: int) -> None:
        self.port = free_port()
        self._options = master.options
        folder = new_folder("sentinel")
        config = Path(folder.name) / "sentinel.conf"
        config.write_text("\n".join(self._config(folder.name, master, quorum)) + "\n")
        super().__init__(
            f"sentinel of {master.program.name} on port {self.port}",
            folder,
            [str(master.program.path), str(config), "--sentinel"],
            ready=lambda: self.says("PING"),
            not_yet=redis.RedisError,
        )

    def says(self, *command: str | int) -> Any:
        """What it answers to a command, as the protocol has it."""
        tls = self._options.get("tls")
        with redis.Redis(
            port=self.port, decode_responses=True, socket_timeout=2.0, single_connection_client=True,
            ssl=tls is not None, ssl_ca_certs=str(tls.authority) if tls else None, protocol=3,
        ) as client:  # fmt: skip
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def _config(self, folder: str, master: RedisServer, quorum: int) -> list[str]:
        lines = [
            f"dir {folder}",
            "bind 127.0.0.1",
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        if password := self._options.get("password"):
            lines.append(f'sentinel auth-pass {SERVICE} "{password}"')
        if tls := self._options.get("tls"):
            return [*lines, "port 0", f"tls-port {self.port}", *tls_lines(tls)]
        return [*lines, f"port {self.port}"]


class RedisSentinel:
    """Two servers in `nodes`, the first of which starts as the master, and one to three `sentinels`.

    `with` starts them, and returns when every sentinel knows all of them and could fail over.
    """

    def __init__(self, sentinels: int = 1, **options: Unpack[Options]) -> None:
        master = RedisServer(**options)
        of_replica: Options = {**options, "replica_of": master}
        self.nodes = [master, RedisServer(**of_replica)]
        self.sentinels = [Sentinel(master, sentinels // 2 + 1) for _ in range(sentinels)]
        self._stack = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """`redis+sentinel://host:port,…/carteiro/0`, the sentinels' ports; the credentials are those of the servers."""
        return join_urls("sentinel", self.nodes[0].url, [one.port for one in self.sentinels], f"{SERVICE}/")

    @property
    def master(self) -> RedisServer:
        """The server that the first sentinel holds for the master, running or not."""
        _, port = self.sentinels[0].says("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        (found,) = [node for node in self.nodes if node.port == int(port)]
        return found

    def failover(self) -> RedisServer:
        """Make the replica the master, both being well, and return it when it is."""
        was = self.master
        self.sentinels[0].says("SENTINEL", "FAILOVER", SERVICE)
        return self.new_master(was)

    def new_master(self, was: RedisServer) -> RedisServer:
        """Wait until another server than `was`, the dead one, is master, and every sentinel says so; return it."""
        (other,) = [node for node in self.nodes if node is not was]
        for sentinel in self.sentinels:
            sentinel.until(functools.partial(self._obeys, sentinel, other), "told of the new master")
        other.until(lambda: other.says("INFO", "replication")["role"] == "master", "master", not_yet=redis.RedisError)
        return other

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for server in (*self.nodes, *self.sentinels):
                stack.enter_context(server)
            for sentinel in self.sentinels:
                sentinel.until(functools.partial(self._could_fail_over, sentinel), "aware of all the others")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _seen_by(self, sentinel: Sentinel) -> dict[str, str]:
        seen: dict[str, str] = sentinel.says("SENTINEL", "MASTER", SERVICE)
        return seen

    def _obeys(self, sentinel: Sentinel, master: RedisServer) -> bool:
        return int(self._seen_by(sentinel)["port"]) == master.port

    def _could_fail_over(self, sentinel: Sentinel) -> bool:
        others = int(self._seen_by(sentinel)["num-other-sentinels"])
        replicas: list[dict[str, str]] = sentinel.says("SENTINEL", "REPLICAS", SERVICE)
        linked = [replica for replica in replicas if replica["master-link-status"] == "ok"]
        return others == len(self.sentinels) - 1 and len(linked) == len(self.nodes) - 1
