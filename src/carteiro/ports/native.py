"""Objects of one system in place of a topic's name: what they are for an app, whatever the system."""

from __future__ import annotations

from carteiro.errors import InvalidTopic, UnsupportedFeature
from carteiro.message import Native
from carteiro.ports.features import Features
from carteiro.topics import check_topic


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
