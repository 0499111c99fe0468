"""What tasks and their steps return, as JSON and back. Bytes are base64 within it, as within any body."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from carteiro.handlers.codecs import decoder, encode
from carteiro.message import NO_HEADERS, Message


def written(value: Any) -> bytes:
    """Raises Unencodable."""
    return encode([value])[0][1:-1]


def read(text: bytes, annotation: Any) -> Any:
    """What was written, as `annotation`. Raises InvalidBody where it does not fit."""
    try:
        reader = _reader(annotation)
    except TypeError:  # an annotation with metadata that cannot be hashed
        reader = _reader.__wrapped__(annotation)
    return reader(text)


@lru_cache(maxsize=512)
def _reader(annotation: Any) -> Callable[[bytes], Any]:
    if annotation is Any or annotation is inspect.Parameter.empty:
        return msgspec.json.decode
    decode = decoder(list[annotation])  # as an item, so that text and bytes are what they are within a body
    return lambda text: decode(Message("", "", b"[" + text + b"]", None, NO_HEADERS, "", 0.0))[0]
