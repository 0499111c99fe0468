"""A look at the server's health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from carteiro.backends.redis.link import Link
from carteiro.errors import BrokerError
from carteiro.ports.broker import Check


async def examine(link: Link) -> Sequence[Check]:
    try:
        await link.open()
    except BrokerError as error:
        return [Check("reachable", "error", str(error))]
    try:
        info = _parse(await link.command("INFO"))
        return [
            Check("reachable", "ok", f"`{link.address}` answers, keys begin with `{link.address.base}`"),
            _version(info),
            _role(info),
            _eviction(info),
            _memory(info),
            *_persistence(info),
        ]
    except BrokerError as error:
        return [Check("reachable", "error", str(error))]
    finally:
        await link.close()


def _parse(info: bytes) -> dict[str, str]:
    lines = [line.partition(":") for line in info.decode().splitlines() if not line.startswith("#")]
    return {name: value for name, separator, value in lines if separator}


def _version(info: Mapping[str, str]) -> Check:
    name = info.get("server_name", "redis")
    return Check("version", "ok", f"{name} {info.get(f'{name}_version', info['redis_version'])}")


def _role(info: Mapping[str, str]) -> Check:
    if info["role"] != "master":
        return Check("role", "error", "it is a replica, and takes no writes: connect to the master")
    return Check("role", "ok", f"master with {info['connected_slaves']} replicas")


def _eviction(info: Mapping[str, str]) -> Check:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return Check("eviction", "ok", "maxmemory-policy is noeviction: a full server refuses, and drops nothing")
    return Check(
        "eviction",
        "warning",
        f"maxmemory-policy is {policy}: a full server drops messages; `CONFIG SET maxmemory-policy noeviction`",
    )


def _memory(info: Mapping[str, str]) -> Check:
    used, limit = int(info["used_memory"]), int(info.get("maxmemory", "0"))
    if not limit:
        return Check("memory", "ok", f"{used / 1_048_576:,.1f} MB, no limit")
    full = used / limit
    detail = f"{used / 1_048_576:,.1f} MB of {limit / 1_048_576:,.1f} MB ({full:.0%})"
    return Check("memory", "ok" if full < 0.9 else "warning", detail)


def _persistence(info: Mapping[str, str]) -> list[Check]:
    if info["aof_enabled"] == "1":
        if info.get("aof_last_write_status", "ok") != "ok":
            return [
                Check("persistence", "error", "the last write to the AOF failed: look at the server's log and disk")
            ]
        return [Check("persistence", "ok", "AOF; `appendfsync` says how much a power cut can take (1 s by default)")]
    if info["rdb_last_save_time"] != "0" and info.get("rdb_saves", "1") != "0":
        return [
            Check(
                "persistence",
                "warning",
                "snapshots only: a restart loses what came since the last one; `CONFIG SET appendonly yes`",
            )
        ]
    return [Check("persistence", "warning", "none: a restart loses every message; `CONFIG SET appendonly yes`")]
