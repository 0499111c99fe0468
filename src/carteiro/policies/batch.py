"""Many messages in one call."""

from __future__ import annotations

import msgspec

from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError


class Batch(msgspec.Struct, frozen=True):
    """Up to `size` messages in one call of the handler; one that is not full is handed over after `wait`."""

    size: int = 100
    wait: Duration = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1 or seconds(self.wait) < 0:
            raise ConfigurationError(
                f"Batch(size={self.size!r}, wait={self.wait!r}): at least 1 message and not less than 0 seconds"
            )
