"""Limits that hold across all the workers of a cluster, for a task or for each key of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec

from carteiro.errors import ConfigurationError, InvalidBody
from carteiro.policies.rate import Rate


class Limit(msgspec.Struct, frozen=True):
    """At most `running` of a task run at once in the whole cluster, and at most `rate` (`"100/m"`) of it start.

    With `per`, which makes a key of the arguments (`per=lambda a: a.user_id`), each key has the limit to itself. What
    is over it waits in the broker, so that one key's million messages hold up no other key's ten: for that, a worker's
    concurrency must be over `running`.
    """

    running: int | None = None
    rate: str | None = None
    per: Callable[[Any], object] | None = None

    def __post_init__(self) -> None:
        if self.running is None and self.rate is None:
            raise ConfigurationError(
                "Limit() limits nothing: say how many may run at once, Limit(2), or start, Limit(rate='100/m')"
            )
        if self.running is not None and (type(self.running) is not int or self.running < 1):
            raise ConfigurationError(f"Limit(running={self.running!r}): a whole number, at least 1")
        if self.rate is not None:
            if not isinstance(self.rate, str):
                raise ConfigurationError(f"Limit(rate={self.rate!r}): write it as 100/m, 10/s, 5/10s or 1000/h")
            Rate.parse(self.rate)
        if self.per is not None and not callable(self.per):
            raise ConfigurationError(
                f"Limit(per={self.per!r}): a function of the arguments, such as per=lambda a: a.user_id"
            )

    def key_of(self, arguments: Mapping[str, Any]) -> str:
        """The key under which these arguments, by name, are counted. Raises InvalidBody where `per` finds none."""
        if self.per is None:
            return ""
        try:
            return str(self.per(SimpleNamespace(**arguments)))
        except (AttributeError, LookupError, TypeError) as error:
            raise InvalidBody(f"the `per` of the task's limit makes no key of these arguments: {error}") from error
