"""What the server refuses, in words that name the cause and the way out."""

from __future__ import annotations

import re
from typing import Final

from carteiro.errors import BrokerError, BrokerUnavailable

NOT_FOUND: Final = 404
LOCKED: Final = 405
CONFLICT: Final = 406


class Refused(BrokerError):
    """The server closed a channel, or the connection, over what was asked; `code` is AMQP's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


_PASSING: Final = {
    320: "is shutting down, or someone has closed the connection",
    506: "lacks the resources",
    541: "has an internal error",
}
_DENIED: Final = {
    403: "does not permit that to this user: give it configure, write and read on what the message names",
    LOCKED: "keeps this for another connection alone (an exclusive queue)",
    530: "does not let this user into this virtual host, or has none of this name",
}


_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(.*?)' for ((?:queue|exchange) '.*') in vhost '.*': received (.*) but current is (.*)"
)
_MISSING: Final = re.compile(r"no ((?:queue|exchange) '.*' in vhost '.*')")
_VALUE: Final = re.compile(r"'(.*?)'(?: of type '.*')?$")


def _value(said: str) -> str:
    """`none`, `'text'`, or `the value 'text' of type 'longstr'`."""
    found = _VALUE.search(said)
    return said if found is None else found[1]


def explain(code: int, text: str, server: str) -> BrokerError:
    """The exception for the code and text with which the server closes a channel or a connection."""
    if code in _PASSING:
        return BrokerUnavailable(f"`{server}` {_PASSING[code]} ({text})")
    if code in _DENIED:
        return Refused(code, f"`{server}` {_DENIED[code]} ({text})")
    if code == CONFLICT and "timed out" in text:
        return Refused(
            code,
            f"`{server}` took a message back that was handled for longer than its consumer_timeout: raise that on the "
            f"server, or move to RabbitMQ 3.12, where carteiro's own queues have a limit of their own ({text})",
        )
    if code == CONFLICT and (conflict := _INEQUIVALENT.search(text)):
        option, what, asked, there = conflict.groups()
        return Refused(
            code,
            f"`{server}` has the {what} with {option}={_value(there)}, and {_value(asked)} is asked for: say what is "
            "there, or take it as it is with declare=False, or delete it",
        )
    if code == NOT_FOUND and (missing := _MISSING.search(text)):
        return Refused(code, f"`{server}` has no {missing[1]}: create it, or have it declared")
    return Refused(code, f"`{server}` refused: {text}")


def not_accepted(text: str, server: str) -> BrokerError:
    return Refused(403, f"`{server}` does not accept this user and password, or certificate ({text})")
