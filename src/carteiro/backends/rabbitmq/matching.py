"""Which messages a binding brings on, by the type of its exchange: what the server does, for tests without one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any


def matches_binding(
    exchange_type: str, binding_key: str, arguments: Mapping[str, Any], key: str, headers: Mapping[str, str]
) -> bool:
    """Of a type that a plugin brings all are taken to match."""
    if exchange_type == "direct":
        return binding_key == key
    if exchange_type == "topic":
        return _pattern(binding_key).fullmatch("." + key) is not None
    if exchange_type == "headers":
        return _matches_headers(arguments, headers)
    return True


@lru_cache(maxsize=1024)
def _pattern(key: str) -> re.Pattern[str]:
    """Of a key with a dot before it. AMQP's words may be empty, unlike those of topics."""
    parts = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}
    return re.compile("".join(parts.get(word, r"\." + re.escape(word)) for word in key.split(".")))


def _matches_headers(arguments: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    """A header that carteiro publishes is a text; `x-match` and all of `x-…` are no headers."""
    how = arguments.get("x-match", "all")
    wanted = {name: value for name, value in arguments.items() if not name.startswith("x-") or how.endswith("-with-x")}
    wanted.pop("x-match", None)
    found = (name in headers and (value is None or value == headers[name]) for name, value in wanted.items())
    return any(found) if how.startswith("any") else all(found)
