"""What the server refuses, in words that name the cause and the way out."""

from __future__ import annotations

from typing import Final

from carteiro.errors import BrokerError, BrokerUnavailable


class AnswerLost(BrokerUnavailable):
    """The connection ended while a call was under way on it: it may or may not have been done."""


class Stale(Exception):
    """The routes have changed since this process read them."""


class NoQueue(Exception):
    """A queue that is not there: it was removed, or the server has lost everything."""


_PASSING: Final = {
    "OOM": "is full and takes no new messages, only what it holds is handled: free memory, or raise maxmemory",
    "LOADING": "is loading its data after a start",
    "READONLY": "is a replica, and takes no writes: connect to the master, or through redis+sentinel://",
    "MASTERDOWN": "is a replica that has lost its master",
    "MISCONF": "cannot save to its disk, and so takes no writes: look at its log and its disk",
    "NOREPLICAS": "has fewer replicas than min-replicas-to-write asks for",
    "BUSY": "is kept busy by a script of someone else",
    "CLUSTERDOWN": "is a cluster that does not serve all of its slots",
    "MOVED": "has handed these keys to another node",
    "ASK": "is handing these keys to another node",
    "TRYAGAIN": "is handing these keys to another node",
    "UNKILLABLE": "is kept busy by a script of someone else",
}
_ELSEWHERE: Final = frozenset({"READONLY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN"})
"""After these a new connection may find the node that can."""

_DENIED: Final = {
    "NOAUTH": "wants a password: put it into the URL, as in redis://:PASSWORD@host",
    "WRONGPASS": "does not accept this user and password",
    "NOPERM": "does not permit this user what carteiro needs (docs/guides/redis.md has the ACL rule)",
}
_DENIED_WITHIN: Final = ("ERR ACL failure in script", "ERR The user executing the script can't")
"""How a server, and one before 7.2, says NOPERM of what a script calls."""


def explain(text: str, server: str) -> Exception:
    """The exception for an error reply."""
    kind = text.partition(" ")[0].removeprefix("-")
    if kind == "STALE":
        return Stale(text)
    if kind == "NOQUEUE":
        return NoQueue(text.partition(" ")[2])
    if kind == "MISPLACED":
        wanted, found, name = text.split(" ", 3)[1:]
        return BrokerError(
            f"`{name}` is no {wanted}: `{server}` has a {found} of this name. Name another key, or remove it"
        )
    if text.startswith("ERR Script attempted to access"):
        return BrokerError(
            f"`{server}` is a cluster, and a list or stream is not in the slot of carteiro's keys: begin its name with "
            f'the prefix of these in braces, as in RedisList("{{carteiro}}jobs") ({text})'
        )
    if text.startswith(_DENIED_WITHIN):
        kind = "NOPERM"
    if kind in _PASSING:
        return BrokerUnavailable(f"`{server}` {_PASSING[kind]} ({text})")
    if kind in _DENIED:
        return BrokerError(f"`{server}` {_DENIED[kind]} ({text})")
    return BrokerError(f"`{server}` refused: {text}")


def lives_elsewhere(text: str) -> bool:
    """Whether the connection is to the wrong node."""
    return text.partition(" ")[0] in _ELSEWHERE
