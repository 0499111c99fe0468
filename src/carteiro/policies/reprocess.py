"""Dead letters that are tried again by themselves."""

from __future__ import annotations

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError


class Reprocess(msgspec.Struct, frozen=True):
    """Send a dead letter back to its group when it has been dead for `every`, at most `limit` times.

    It starts at attempt 1 again. What no further try can help (a body that does not fit, a `Reject`, a type without a
    handler) stays dead.
    """

    every: Duration = "10m"
    limit: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.limit, int) or self.limit < 1 or seconds(self.every) <= 0:
            raise ConfigurationError(
                f"Reprocess(every={self.every!r}, limit={self.limit!r}): over 0 seconds, and at least once"
            )
