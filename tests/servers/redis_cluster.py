"""A Redis Cluster of a few masters, as a test holds it."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Self, Unpack

import redis

from tests.servers.process import free_port
from tests.servers.redis import Options, RedisServer

_SLOTS = 16_384


class RedisCluster:
    """So many masters that share all slots, without replicas; each is a `RedisServer` in `nodes`.

    `with` starts them, and returns when each knows the others and all slots are served.
    """

    def __init__(self, masters: int = 3, **options: Unpack[Options]) -> None:
        self._bus = [free_port() for _ in range(masters)]
        self.nodes = [RedisServer(**_in_cluster(options, bus)) for bus in self._bus]
        self._stack = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """`redis+cluster://host:port,…/0`, or `rediss+cluster://`; password and TLS as in a server's URL."""
        return join_urls("cluster", self.nodes[0].url, [node.port for node in self.nodes])

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def until_ok(self) -> None:
        """Return when every node says that all slots are served: after the start, and after a node came back."""
        for node in self.nodes:
            node.until(functools.partial(self._is_ok, node), "in a cluster that is ok", not_yet=redis.RedisError)

    def _join(self) -> None:
        first = self.nodes[0]
        for number, (node, bus) in enumerate(zip(self.nodes, self._bus, strict=True)):
            start, end = (_SLOTS * at // len(self.nodes) for at in (number, number + 1))
            node.says("CLUSTER SET-CONFIG-EPOCH", number + 1)
            node.says("CLUSTER ADDSLOTSRANGE", start, end - 1)
            if node is not first:
                first.says("CLUSTER MEET", "127.0.0.1", node.port, bus)
        self.until_ok()

    def _is_ok(self, node: RedisServer) -> bool:
        info: dict[str, Any] = node.says("CLUSTER INFO")
        return info["cluster_state"] == "ok" and int(info["cluster_size"]) == len(self.nodes)


def _in_cluster(options: Options, bus: int) -> Options:
    lines = ["cluster-enabled yes", f"cluster-port {bus}", "cluster-node-timeout 2000"]
    if options.get("tls"):
        lines.append("tls-cluster yes")
    return {**options, "config": [*lines, *options.get("config", ())]}


def join_urls(kind: str, url: str, ports: list[int], path: str = "") -> str:
    """A server's URL turned into one of `kind` that names many ports, with `path` in front of the database."""
    scheme, rest = url.split("://")
    credentials, at, address = rest.rpartition("@")
    _, _, database = address.partition("/")
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"{scheme}+{kind}://{credentials}{at}{hosts}/{path}{database}"
