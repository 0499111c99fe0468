"""Topic names, patterns and captures.

A topic is dotted words: `orders.placed`. A pattern may hold `*` (one word), `#` (any number of words, also none) and
`{name}` (one word, captured). A backend sees patterns with `*` and `#` only. Topics that begin with `$` are carteiro's
own (reply inboxes): a pattern that begins with a wildcard does not match them, as in MQTT.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from carteiro.errors import InvalidTopic

DLQ_PREFIX: Final = "dlq_"
_MAX_LENGTH = 249  # Kafka's limit, the smallest among the brokers
_WORD = re.compile(r"[^\s.*#{}\x00]+")
_CAPTURE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def check_topic(name: str) -> str:
    """Return `name` if one can publish to it; raise InvalidTopic if it is empty, too long or a pattern."""
    _check(name, pattern=False)
    return name


def check_pattern(name: str) -> str:
    """Return `name` if one can subscribe to it; raise InvalidTopic otherwise."""
    _check(name, pattern=True)
    return name


@lru_cache(maxsize=4096)
def _check(name: str, *, pattern: bool) -> None:
    if not name:
        raise InvalidTopic("a topic needs a name: dotted words such as `orders.placed`")
    if len(name.encode()) > _MAX_LENGTH:
        raise InvalidTopic(f"topic `{name[:40]}…` is longer than {_MAX_LENGTH} bytes")
    for word in name.split("."):
        if _WORD.fullmatch(word):
            continue
        if pattern and (word in ("*", "#") or _CAPTURE.fullmatch(word)):
            continue
        if not pattern and (word in ("*", "#") or _CAPTURE.fullmatch(word)):
            raise InvalidTopic(f"`{name}` is a pattern: one can subscribe to it, but publishing needs a full name")
        raise InvalidTopic(
            f"`{name}` is no topic: `{word}` is not a word (no spaces, none empty; `*`, `#` and `{{name}}` stand alone)"
        )


def captures(pattern: str) -> tuple[str, ...]:
    """The names between braces, in order: `logs.{level}` gives `("level",)`."""
    return tuple(_CAPTURE.findall(pattern))


def wildcard(pattern: str) -> str:
    """The pattern as brokers know it, with each capture a `*`."""
    return _CAPTURE.sub("*", pattern)


def is_pattern(name: str) -> bool:
    return any(word in ("*", "#") or word[:1] == "{" for word in name.split("."))


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    for word in pattern.split("."):
        capture = _CAPTURE.fullmatch(word)
        if word == "#":
            parts.append(r"(?:\.[^.]+)*")
        elif word == "*":
            parts.append(r"\.[^.]+")
        elif capture:
            parts.append(rf"\.(?P<{capture[1]}>[^.]+)")
        else:
            parts.append(r"\." + re.escape(word))
    own = r"(?!\.\$)" if is_pattern(pattern.partition(".")[0]) else ""
    return re.compile(own + "".join(parts))


def match(pattern: str, topic: str) -> dict[str, str] | None:
    """What `pattern` captures in `topic`, or None where it does not match."""
    found = _regex(pattern).fullmatch("." + topic)
    return None if found is None else found.groupdict()


def matches(pattern: str, topic: str) -> bool:
    return pattern == topic or _regex(pattern).fullmatch("." + topic) is not None


def dlq_name(topic: str, group: str | None = None) -> str:
    """`dlq_<topic>`, or `dlq_<topic>.<group>` where several groups would collide."""
    return f"{DLQ_PREFIX}{topic}" if group is None else f"{DLQ_PREFIX}{topic}.{group}"
