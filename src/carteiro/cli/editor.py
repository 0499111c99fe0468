"""A dead letter's body in the user's own editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile

import msgspec

from carteiro.cli.exits import CommandError
from carteiro.message import CONTENT_TYPE, Message


def edited(message: Message) -> bytes:
    """The body as the user leaves it in $VISUAL, $EDITOR or vi; JSON stays JSON.

    Raises CommandError if it is no text, was not changed, or is no JSON any more: what was written is kept then.
    """
    if "msgpack" in message.headers.get(CONTENT_TYPE, ""):
        raise CommandError(f"the body of {message.id} is MessagePack, which no editor shows: replay it without --edit")
    try:
        text = message.body.decode()
    except UnicodeDecodeError:
        raise CommandError(
            f"the body of {message.id} is no text that could be edited: replay it without --edit"
        ) from None
    json = _is_json(message.body)
    before = (msgspec.json.format(text) + "\n") if json else text
    with tempfile.NamedTemporaryFile(
        "w+", prefix="carteiro-", suffix=".json" if json else ".txt", delete=False
    ) as file:
        file.write(before)
    _open(file.name)
    with open(file.name, encoding="utf-8", newline="") as written:
        after = written.read()
    if after == before:
        os.unlink(file.name)
        raise CommandError("the body was not changed and nothing is replayed: leave out --edit to replay it as it is")
    if not json:
        os.unlink(file.name)
        return after.encode()
    try:
        msgspec.json.decode(after)
    except msgspec.DecodeError as error:
        raise CommandError(
            f"the body is no JSON any more ({error}): nothing is replayed, your text is in {file.name}"
        ) from None
    os.unlink(file.name)
    return msgspec.json.format(after, indent=-1).encode()


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return False
    return True


def _open(path: str) -> None:
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.call([*shlex.split(command), path])
    except FileNotFoundError:
        raise CommandError(f"there is no editor `{command}`: name one with EDITOR=") from None
    if code != 0:
        raise CommandError(f"the editor `{command}` ended with exit code {code}: nothing is replayed")
