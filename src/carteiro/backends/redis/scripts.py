"""The Lua in `lua/`, as the server runs it.

A script's header names the parts it needs; they are put before it, so that what several of them do is written once.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from importlib.resources import files
from typing import Final

import msgspec

_WORD: Final = re.compile(r"\w+")
_COMMENT: Final = re.compile(r"^--.*\n", re.MULTILINE)
_FUNCTION: Final = re.compile(r"^local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)


class Script(msgspec.Struct, frozen=True):
    name: str
    text: str
    sha: str


def _load(name: str) -> Script:
    folder = files("carteiro.backends.redis") / "lua"
    flags, body = (folder / f"{name}.lua").read_text().split("\n", 1)
    needs = next(line for line in body.splitlines() if line.startswith("-- needs")).split()[2:]
    parts = _without_unused("".join(_COMMENT.sub("", (folder / f"{part}.lua").read_text()) for part in needs), body)
    # The server takes the flags from the first line alone.
    text = f"{flags}\n{parts}\n{body}"
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _without_unused(parts: str, body: str) -> str:
    """Without the functions that a script does not call: each call of it would make all of them anew."""
    while True:
        words = Counter(_WORD.findall(parts + body))
        unused = [found for found in _FUNCTION.finditer(parts) if words[found[1]] == 1]
        if not unused:
            return parts
        for function in reversed(unused):
            parts = parts[: function.start()] + parts[function.end() :]


BEAT: Final = _load("beat")
CHANGED: Final = _load("changed")
CLAIM: Final = _load("claim")
DECLARE: Final = _load("declare")
EXHUME: Final = _load("exhume")
GROUPS: Final = _load("groups")
IMPORT: Final = _load("import")
JOIN: Final = _load("join")
LETTERS: Final = _load("letters")
LISTENING: Final = _load("listening")
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
