"""How a parameter is had from the message itself: a source is a function from the message to the value."""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import msgspec

from carteiro import topics
from carteiro.errors import InvalidBody, InvalidHandler
from carteiro.handlers.codecs import converter, decoder, fields_type, words
from carteiro.handlers.injected import Logger
from carteiro.handlers.markers import BodyMarker, HeaderMarker, PathMarker
from carteiro.handlers.signature import EMPTY, Parameter
from carteiro.message import Message

Source = Callable[[Any], Any]


class MessageSources:
    """What one message offers to the functions that handle it. `topic` is the subscription's, a name or a pattern."""

    def __init__(self, topic: str, name: str) -> None:
        self._topic = topic
        self._names = topics.captures(topic)
        self._logger = logging.getLogger(f"carteiro.handlers.{name}")
        # Few topics match one pattern, so that what they capture is worth keeping.
        self._captured = lru_cache(maxsize=1024)(partial(topics.match, topic))

    @staticmethod
    def portable(message: Message) -> Message:
        """The message as it can be sent to another process: headers may be of a kind that cannot be pickled."""
        return msgspec.structs.replace(message, headers=dict(message.headers))

    def injected(self, parameter: Parameter) -> Source | None:
        """What is given for the annotation alone."""
        if parameter.annotation is Message:
            return _itself
        if parameter.annotation is Logger:
            return partial(Logger, self._logger, self._topic)
        return None

    def body(self, parameter: Parameter, here: str) -> Source:
        """The whole body; an empty one is the default where there is one."""
        decode = _of_body(parameter.annotation, here)
        if not parameter.optional:
            return decode
        default = parameter.default
        return lambda message: decode(message) if message.body else default

    def fields(self, parameters: Sequence[Parameter], where: str) -> tuple[Any, Source, list[Source]]:
        """Some fields of the body, decoded in one call: the body's type, its source, and what picks each from it."""
        for one in parameters:
            _of_body(one.annotation, f"{where}: parameter `{one.name}`")
        fields = {one.name: (_any_if_empty(one.annotation), not one.optional) for one in parameters}
        kind = fields_type(fields)
        decode = _of_body(kind, where)
        if all(one.optional for one in parameters):
            decode = _or_empty(decode)
        return kind, decode, [_field(one) for one in parameters]

    def header(self, parameter: Parameter, marker: HeaderMarker, here: str) -> Source:
        """Exact names come first, then any case: HTTP gateways and AMQP clients write `X-Tenant` as they like."""
        name = marker.name or parameter.name.replace("_", "-")
        folded = name.lower()
        convert, default = _of_text(parameter.annotation, here), parameter.default

        def read(message: Message) -> Any:
            headers = message.headers
            text = headers.get(name)
            if text is None:
                text = next((value for key, value in headers.items() if key.lower() == folded), None)
                if text is None:
                    if default is EMPTY:
                        raise InvalidBody(f"header `{name}` is missing")
                    return default
            return text if convert is None else _converted(convert, text, f"header `{name}`")

        return read

    def path(self, parameter: Parameter, marker: PathMarker, here: str) -> Source:
        name = marker.name or parameter.name
        convert, default, captured = _of_text(parameter.annotation, here), parameter.default, self._captured
        if name not in self._names:
            if parameter.optional:
                return lambda message: default
            known = ", ".join(f"`{{{one}}}`" for one in self._names) or "nothing"
            raise InvalidHandler(
                f"{here}: the topic `{self._topic}` captures {known}: write `{{{name}}}` for one of its words"
            )

        def read(message: Message) -> Any:
            words_ = captured(message.topic)
            if words_ is None:
                if default is EMPTY:
                    raise InvalidBody(f"topic `{message.topic}` has no `{name}`: it does not match `{self._topic}`")
                return default
            return words_[name] if convert is None else _converted(convert, words_[name], f"`{name}` of the topic")

        return read


class BatchSources:
    """What a batch offers: it is handed to the sources as `(messages, values)`."""

    def __init__(self, topic: str, name: str) -> None:
        self._logger = Logger(logging.getLogger(f"carteiro.handlers.{name}"), topic)

    @staticmethod
    def portable(batch: tuple[Sequence[Message], Sequence[Any]]) -> tuple[Sequence[Message], Sequence[Any]]:
        return [MessageSources.portable(message) for message in batch[0]], batch[1]

    def injected(self, parameter: Parameter) -> Source | None:
        kind = parameter.annotation
        if is_list(kind) and typing.get_args(kind) == (Message,):
            return itemgetter(0)
        if kind is Logger:
            return lambda batch: self._logger
        return None

    def body(self, parameter: Parameter, here: str) -> Source:
        if not is_list(parameter.annotation):
            raise InvalidHandler(
                f"{here}: a batch handler takes its bodies as `list[...]`, and its messages as `list[Message]`"
            )
        return itemgetter(1)

    def fields(self, parameters: Sequence[Parameter], where: str) -> tuple[Any, Source, list[Source]]:
        names = ", ".join(f"`{one.name}`" for one in parameters)
        raise InvalidHandler(f"{where}: a batch handler has one parameter for the bodies, `list[...]`, not {names}")

    def header(self, parameter: Parameter, marker: HeaderMarker, here: str) -> Source:
        raise InvalidHandler(f"{here}: a batch has no headers of its own: take `list[Message]` and read theirs")

    def path(self, parameter: Parameter, marker: PathMarker, here: str) -> Source:
        raise InvalidHandler(f"{here}: a batch has no topic of its own: take `list[Message]` and read theirs")


Sources = MessageSources | BatchSources


def is_list(annotation: Any) -> bool:
    """`list[T]`, or `Sequence[T]`, or without T."""
    return annotation is list or typing.get_origin(annotation) in (list, Sequence)


def is_field(parameter: Parameter, among: int) -> bool:
    """Whether one of `among` body parameters is a field of the body, and not the whole of it."""
    embed = parameter.marker.embed if isinstance(parameter.marker, BodyMarker) else None
    return among > 1 if embed is None else embed


def _itself(message: Message) -> Message:
    return message


def _any_if_empty(annotation: Any) -> Any:
    return Any if annotation is EMPTY else annotation


def _or_empty(decode: Source) -> Source:
    return lambda message: decode(message) if message.body else {}


def _field(parameter: Parameter) -> Source:
    name, default = parameter.name, parameter.default
    if parameter.optional:
        return lambda fields: fields.get(name, default)
    return itemgetter(name)


def _of_body(annotation: Any, here: str) -> Source:
    try:
        return decoder(annotation)
    except TypeError as error:
        raise InvalidHandler(
            f"{here} is none that a body can be decoded into ({error}): use a pydantic model, a msgspec Struct, "
            f"a dataclass, a TypedDict or a plain type, or say where it comes from: Depends(), Header(), Path(), "
            f"Message, carteiro's Logger"
        ) from error


def _of_text(annotation: Any, here: str) -> Callable[[str], Any] | None:
    try:
        return converter(annotation)
    except TypeError as error:
        raise InvalidHandler(f"{here} is none that text can be converted to ({error})") from error


def _converted(convert: Callable[[str], Any], text: str, what: str) -> Any:
    try:
        return convert(text)
    except ValueError as error:
        raise InvalidBody(f"{what}: {words(error)}") from error
