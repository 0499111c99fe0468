"""The Lua in `lua/`, as the server runs it.

A script's header names the parts it needs; they are put before it, so that what several of them do is written once.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

import msgspec


class Script(msgspec.Struct, frozen=True):
    name: str
    text: str
    sha: str


def _load(name: str) -> Script:
    folder = files("carteiro.backends.redis") / "lua"
    flags, body = (folder / f"{name}.lua").read_text().split("\n", 1)
    needs = next(line for line in body.splitlines() if line.startswith("-- needs")).split()[2:]
    # The server takes the flags from the first line alone.
    text = "\n".join([flags, *((folder / f"{part}.lua").read_text() for part in needs), body])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


BEAT: Final = _load("beat")
CLAIM: Final = _load("claim")
DECLARE: Final = _load("declare")
EXHUME: Final = _load("exhume")
GROUPS: Final = _load("groups")
IMPORT: Final = _load("import")
LETTERS: Final = _load("letters")
OPEN: Final = _load("open")
PEEK: Final = _load("peek")
PUBLISH: Final = _load("publish")
PURGE: Final = _load("purge")
READ: Final = _load("read")
REMOVE: Final = _load("remove")
RENEW: Final = _load("renew")
REPLAY: Final = _load("replay")
REWIND: Final = _load("rewind")
ROUTES: Final = _load("routes")
SETTLE: Final = _load("settle")
UNWAIT: Final = _load("unwait")
WRITE: Final = _load("write")
