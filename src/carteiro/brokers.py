"""The brokers of an app, by the names that it gives them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from carteiro.errors import ConfigurationError
from carteiro.ports.broker import Backend
from carteiro.ports.clock import Clock
from carteiro.ports.registry import open_backend

DEFAULT: Final = "default"
"""The name of the broker of whatever names none."""
BROKER_VARIABLE: Final = "CARTEIRO_BROKER"
EMBEDDED: Final = "sqlite:///carteiro.db"


class Brokers:
    """What an app was given as `broker=` or `brokers=`: URLs or backends, the default first.

    A None in place of the default is the URL in the environment variable CARTEIRO_BROKER, or else the embedded broker.
    """

    def __init__(self, given: Mapping[str, str | Backend | None]) -> None:
        self._given = {DEFAULT: given[DEFAULT], **given}

    @classmethod
    def of(cls, app: str, broker: str | Backend | None, brokers: Mapping[str, str | Backend] | None) -> Brokers:
        """Raises ConfigurationError for what cannot be meant."""
        if brokers is None:
            return cls({DEFAULT: broker})
        if broker is not None:
            raise ConfigurationError(f"app `{app}` has broker= and brokers=: name the one broker among the others")
        if DEFAULT not in brokers:
            raise ConfigurationError(
                f'app `{app}` has brokers={{…}} without "{DEFAULT}": whatever names no broker is to go somewhere'
            )
        for name, one in brokers.items():
            if one is None or not name or any(letter.isspace() for letter in name):
                raise ConfigurationError(f"brokers= of app `{app}`: {name!r} needs a URL, and its name no spaces")
        return cls(brokers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def check(self, name: str, who: str) -> str:
        """Return `name` if there is such a broker; `who` names it, as the error is to say."""
        if name not in self._given:
            known = ", ".join(f"`{one}`" for one in self)
            raise ConfigurationError(f"{who} names the broker `{name}`, which the app does not have: it has {known}")
        return name

    def url(self, name: str) -> str:
        """As given, by the environment, or the embedded one."""
        given = self._given[name]
        if given is None:
            return os.environ.get(BROKER_VARIABLE) or EMBEDDED
        return given if isinstance(given, str) else f"{given.broker.features.backend}://"

    def identity(self, name: str) -> str:
        """Which broker it is, whatever the app calls it: the URL without its credentials and its further options.

        What is kept on this machine for a broker is kept under this: names follow the order of a file.
        """
        url = self.url(name)
        if not isinstance(self._given[name], str | None) or url.startswith("memory:"):
            return f"{url.partition('://')[0]}://{name}"  # nothing else tells two of them apart
        parts = urlsplit(url)
        prefix = dict(parse_qsl(parts.query)).get("prefix", "")
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{prefix and f'?prefix={prefix}'}"

    def open(self, name: str, clock: Clock) -> Backend:
        """Its backend, not yet connected."""
        given = self._given[name]
        return open_backend(self.url(name), clock=clock) if given is None or isinstance(given, str) else given
