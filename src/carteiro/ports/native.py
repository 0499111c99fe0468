"""Objects of one system in place of a topic's name: what they are for an app, whatever the system."""

from __future__ import annotations

from typing import Final

import msgspec

from carteiro.errors import InvalidTopic, UnsupportedFeature
from carteiro.message import Native
from carteiro.ports.features import Features
from carteiro.topics import check_topic

_NOT_IN_A_WORD: Final = frozenset("*#{}%\0")


def named(to: str | Native) -> tuple[str, Native | None]:
    """The topic to publish to, and the object that was given for it, if any. Raises InvalidTopic for neither."""
    if isinstance(to, str):
        return check_topic(to), None
    if isinstance(to, Native):
        return check_topic(to.topic), to
    raise InvalidTopic(f"{to!r} is no topic: give a name, or an object of the broker's own such as RedisList")


def check_system(native: Native, features: Features, who: str) -> None:
    """Raises UnsupportedFeature where the broker is of another system. `who` wants it, as the error is to say."""
    if native.backend != features.backend and not features.stands_in:
        raise UnsupportedFeature(
            f"{who} needs {native!r}, which only {native.backend} has, and the broker is {features.backend}: "
            f"give the app a {native.backend} broker, or a topic's name in its place"
        )


def as_words(name: str) -> str:
    """A name as words of a topic: what no word may hold is percent-encoded, and so is a dot beside an empty one."""
    encoded = "".join(
        "".join(f"%{byte:02X}" for byte in letter.encode()) if letter.isspace() or letter in _NOT_IN_A_WORD else letter
        for letter in name
    )
    return encoded if all(encoded.split(".")) else encoded.replace(".", "%2E")


def shown(native: msgspec.Struct) -> str:
    """As one would write it: its first field, and those others that are not as they are by default."""
    first, *options = msgspec.structs.fields(native)
    given = [f", {one.name}={value!r}" for one in options if (value := getattr(native, one.name)) != _default(one)]
    return f"{type(native).__name__}({getattr(native, first.name)!r}{''.join(given)})"


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
