"""Many messages in one call."""

from __future__ import annotations

import msgspec

from carteiro.errors import ConfigurationError


class Batch(msgspec.Struct, frozen=True):
    """Up to `size` messages in one call of the handler; one that is not full is handed over after `wait` seconds."""

    size: int = 100
    wait: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1 or self.wait < 0:
            raise ConfigurationError(f"Batch(size={self.size}, wait={self.wait}): at least 1 message and 0 seconds")
