"""What a backend can do, said by the backend and checked at start-up."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal

import msgspec


class Capability(enum.Enum):
    """What a subscription or a caller may need. The value is the word used in errors and in the capability table."""

    GROUPS = "groups"
    BROADCAST = "broadcast"
    PATTERNS = "patterns"
    ORDERED = "order by key"
    DELAY = "delayed publish"
    RETRY = "delayed retry"
    DEAD_LETTERS = "dead letters"
    DEDUPE = "publish-side dedupe"
    RETENTION = "retention and rewind"
    ATOMIC = "ack, emits and store writes in one commit"
    STORE = "store"
    INSPECT = "inspection"
    COUNTS = "counts of all, not only of what waits"
    PEEK = "looking at what waits"
    MULTIPROCESS = "several processes"
    DURABLE = "durability"


class Support(msgspec.Struct, frozen=True):
    """Native, emulated (`how` says by what) or unsupported (`how` says why)."""

    level: Literal["native", "emulated", "unsupported"]
    how: str = ""

    def __bool__(self) -> bool:
        return self.level != "unsupported"


NATIVE = Support("native")


class Features(msgspec.Struct, frozen=True):
    """One backend's answers. What it does not name is unsupported."""

    backend: str
    support: Mapping[Capability, Support]
    stands_in: bool = False
    """Whether it stands in for any system, as in tests: there a native object is the topic of its name."""

    def __getitem__(self, capability: Capability) -> Support:
        return self.support.get(capability, Support("unsupported"))
