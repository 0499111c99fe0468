"""A look at the server's health, with a message that passes through it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from carteiro.backends.redis.broker import RedisBroker
from carteiro.backends.redis.link import Link
from carteiro.errors import BrokerError
from carteiro.message import Action, Outcome, Outgoing, Subscription, new_id
from carteiro.ports.broker import Check


async def examine(broker: RedisBroker, link: Link) -> Sequence[Check]:
    """The broker, and its link, are opened and closed for it."""
    try:
        await broker.connect()
    except BrokerError as error:
        return [Check("reachable", "error", str(error))]
    try:
        info = _parse(await link.command("INFO"))
        role = _role(info)
        return [
            Check("reachable", "ok", f"`{link.address}` answers, keys begin with `{link.address.base}`"),
            _version(info),
            role,
            *([await _passage(broker, link.address.timeout)] if role.status == "ok" else []),
            _eviction(info),
            _memory(info),
            _persistence(info, await _snapshots(link, info)),
        ]
    except BrokerError as error:
        return [Check("reachable", "error", str(error))]
    finally:
        await broker.close()


async def _passage(broker: RedisBroker, patience: float) -> Check:
    """Whether this user may do what it takes. A topic with `$` is in no one's pattern."""
    own = Subscription(f"$doctor.{new_id()}", "doctor", ephemeral=True)
    try:
        async with asyncio.timeout(patience):
            await broker.declare([own])
            consumer = broker.consume([own])
            await broker.publish([Outgoing(new_id(), own.topic, b"", None, {}, "doctor")])
            await consumer.settle([Outcome(one, Action.ACK) for one in await consumer.fetch({own: 1})])
            await consumer.close()
    except BrokerError as error:
        return Check("passage", "error", str(error))
    except TimeoutError:
        return Check("passage", "error", f"a message did not come through within {patience:g} s")
    return Check("passage", "ok", "a message was published, claimed and acked")


async def _snapshots(link: Link, info: Mapping[str, str]) -> bool:
    """Whether it takes any by itself."""
    try:
        configured = await link.command("CONFIG", "GET", "save")
    except BrokerError:  # many may not ask: then whether it has taken any
        return info.get("rdb_saves", "0") != "0"
    return bool(configured[b"save"])


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


def _persistence(info: Mapping[str, str], snapshots: bool) -> Check:
    if info["aof_enabled"] == "1":
        if info.get("aof_last_write_status", "ok") != "ok":
            return Check("persistence", "error", "the last write to the AOF failed: look at the server's log and disk")
        return Check("persistence", "ok", "AOF; `appendfsync` says how much a power cut can take (1 s by default)")
    if snapshots:
        return Check(
            "persistence",
            "warning",
            "snapshots only: a restart loses what came since the last one; `CONFIG SET appendonly yes`",
        )
    return Check("persistence", "warning", "none: a restart loses every message; `CONFIG SET appendonly yes`")
