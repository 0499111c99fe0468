"""For tests of apps (`TestApp`, `VirtualClock`) and of backends (`carteiro.testing.conformance`)."""

from carteiro.testing.app import TestApp
from carteiro.testing.clock import VirtualClock

__all__ = ["TestApp", "VirtualClock"]
