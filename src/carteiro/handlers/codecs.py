"""From values to bodies and back.

A body is plain JSON unless its content type says MessagePack. What decodes it is chosen once, from the annotation, so
that a message costs one call into C: pydantic where the annotation holds something of pydantic's, msgspec (strict) for
the rest, and pydantic again for what msgspec does not know (`pathlib.Path`, `deque`). Importing pydantic takes 0.3 s:
it happens only where an annotation needs it.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

import msgspec

from carteiro.errors import InvalidBody, Unencodable
from carteiro.message import CONTENT_TYPE, Message

BINARY: Final = "application/octet-stream"
MSGPACK: Final = "application/msgpack"

Codec = Literal["json", "msgpack"]

# All that a decoder raises for a body that does not fit: pydantic's and msgspec's errors are ValueErrors.
_MISFITS = (ValueError, RecursionError)


# -- encoding ------------------------------------------------------------------------------------------------------


def encode(value: Any, *, codec: Codec = "json") -> tuple[bytes, str | None]:
    """The body for `value`, and its content type: None for plain JSON.

    Bytes are a body already. Raises Unencodable, naming the type and its place in the value.
    """
    kind: Any = type(value)
    if kind is bytes:
        return value, BINARY
    if kind is bytearray or kind is memoryview:
        return bytes(value), BINARY
    try:
        if codec == "msgpack":
            return _msgpack.encode(value), MSGPACK
        if hasattr(kind, "__pydantic_serializer__"):
            return kind.__pydantic_serializer__.to_json(value), None
        return _json.encode(value), None
    except (TypeError, ValueError, RecursionError) as error:
        raise _unencodable(value, error) from error


def _plain(value: Any) -> Any:
    """What msgspec can encode in place of a value that it does not know."""
    if hasattr(type(value), "__pydantic_serializer__"):
        return type(value).__pydantic_serializer__.to_python(value, mode="json")
    # Paths, IP addresses, URLs, deques, subclasses of str: pydantic's core knows them all, without pydantic itself.
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


_json = msgspec.json.Encoder(enc_hook=_plain)
_msgpack = msgspec.msgpack.Encoder(enc_hook=_plain)


def _unencodable(value: Any, error: Exception) -> Unencodable:
    whole = type(value).__qualname__
    if isinstance(error, RecursionError) or "ircular" in str(error):
        return Unencodable(f"cannot encode a `{whole}`: it is nested too deeply or refers to itself")
    place, culprit = _locate(value, "$")
    kind = type(culprit)
    where = "" if place == "$" else f" at `{place}` of a `{whole}`"
    return Unencodable(
        f"cannot encode `{kind.__module__}.{kind.__qualname__}`{where}: a body is made of pydantic models, "
        f"msgspec Structs, dataclasses and plain values ({error})"
    )


def _locate(value: Any, place: str) -> tuple[str, Any]:
    for step, child in _children(value):
        try:
            _json.encode(child)
        except (TypeError, ValueError):
            return _locate(child, place + step)
    return place, value


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield f".{key}", child
    elif isinstance(value, list | tuple | set | frozenset):
        for index, child in enumerate(value):
            yield f"[{index}]", child
    else:
        names: Any = getattr(type(value), "__struct_fields__", None) or getattr(value, "__dict__", ())
        for name in names:
            yield f".{name}", getattr(value, name, None)


# -- decoding ------------------------------------------------------------------------------------------------------


def decoder(annotation: Any) -> Callable[[Message], Any]:
    """A function from a message to its body as `annotation`; it raises InvalidBody with the validator's own words.

    `bytes` is the body as it came. `str` is a JSON string, or raw text where the body is no JSON or its content type is
    text. `Any` is what the body looks like: JSON, else text, else bytes. Raises TypeError for an annotation that
    neither msgspec nor pydantic knows.
    """
    if annotation is inspect.Parameter.empty or annotation is Any or annotation is object:
        return _decode_any
    bare = _without_none(annotation)
    if bare is bytes:
        return attrgetter("body")
    if bare is str:
        return _text_decoder(annotation)
    from_json, from_msgpack = _decoders(annotation)

    def decode(message: Message) -> Any:
        headers = message.headers
        try:
            if headers and "msgpack" in headers.get(CONTENT_TYPE, ""):
                return from_msgpack(message.body)
            return from_json(message.body)
        except _MISFITS as error:
            raise misfit(error, message) from error

    return decode


def converter(annotation: Any) -> Callable[[str], Any] | None:
    """A function from text (a header, a captured word) to `annotation`, or None where text is what is wanted.

    It raises ValueError, and TypeError is raised here, as by `decoder`.
    """
    if annotation in (inspect.Parameter.empty, Any, object) or _without_none(annotation) is str:
        return None
    if wants_pydantic(annotation):
        validate: Callable[[str], Any] = _pydantic_validator(annotation).validate_python
        return validate
    return lambda text: msgspec.convert(text, annotation, strict=False)


def misfit(error: Exception, message: Message) -> InvalidBody:
    """The error for a body that does not fit."""
    if not message.body:
        return InvalidBody("the message has no body")
    return InvalidBody(words(error))


def words(error: Any) -> str:
    """The validator's own words on one line; pydantic's are many lines, with links."""
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    if (core := sys.modules.get("pydantic_core")) is None or not isinstance(error, core.ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:5]]
    return "; ".join(shown) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def _decode_any(message: Message) -> Any:
    media = message.headers.get(CONTENT_TYPE, "")
    if media == BINARY:
        return message.body
    try:
        if "msgpack" in media:
            return msgspec.msgpack.decode(message.body)
        if not media.startswith("text/"):
            return msgspec.json.decode(message.body)
    except _MISFITS as error:
        if _says_what_it_is(media):
            raise misfit(error, message) from error
    try:
        return message.body.decode()
    except UnicodeDecodeError:
        return message.body


def _text_decoder(annotation: Any) -> Callable[[Message], Any]:
    from_json = msgspec.json.Decoder(annotation).decode
    from_msgpack = msgspec.msgpack.Decoder(annotation).decode

    def decode(message: Message) -> Any:
        body = message.body
        media = message.headers.get(CONTENT_TYPE, "")
        try:
            if "msgpack" in media:
                return from_msgpack(body)
            if media.startswith("text/"):
                return body.decode()
            return from_json(body)
        except _MISFITS as error:
            if _says_what_it_is(media):
                raise misfit(error, message) from error
            # msgspec stops at the first wrong type: `123 Main St` is no number where the whole is read.
            if _is_json(body):
                raise InvalidBody(words(error)) from error
            try:
                return body.decode()
            except UnicodeDecodeError as undecodable:
                raise InvalidBody(f"neither JSON nor text: {undecodable}") from undecodable

    return decode


def _says_what_it_is(media: str) -> bool:
    return "json" in media or "msgpack" in media


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except _MISFITS:
        return False
    return True


def _decoders(annotation: Any) -> tuple[Callable[[bytes], Any], Callable[[bytes], Any]]:
    if not wants_pydantic(annotation):
        return msgspec.json.Decoder(annotation).decode, msgspec.msgpack.Decoder(annotation).decode
    validator = _pydantic_validator(annotation)
    validate = validator.validate_python
    return validator.validate_json, lambda body: validate(msgspec.msgpack.decode(body))


def _pydantic_validator(annotation: Any) -> Any:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(annotation).validator
    except PydanticUserError as error:
        raise TypeError(str(error.message).partition("\n")[0]) from error


# -- which of the two ----------------------------------------------------------------------------------------------


def wants_pydantic(annotation: Any) -> bool:
    """Whether pydantic decodes it: it holds something of pydantic's, or something that msgspec does not know."""
    return _holds_pydantic(annotation, set()) or not _fits_msgspec(annotation)


def _without_none(annotation: Any) -> Any:
    members = [one for one in typing.get_args(annotation) if one is not types.NoneType]
    optional = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return members[0] if optional and len(members) == 1 else annotation


def _holds_pydantic(annotation: Any, seen: set[Any]) -> bool:
    if _is_pydantics(annotation):
        return True
    if typing.get_origin(annotation) is Annotated and any(map(_is_pydantics, annotation.__metadata__)):
        return True
    inner = [*filter(None, [typing.get_origin(annotation)]), *typing.get_args(annotation)]
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if annotation in seen:
            return False
        seen.add(annotation)  # only a class can lead back to itself
        if any(hasattr(annotation, mark) for mark in ("__struct_fields__", "__dataclass_fields__", "__total__")):
            try:
                inner += typing.get_type_hints(annotation, include_extras=True).values()
            except NameError:  # msgspec says better what is wrong with it
                return False
    return any(_holds_pydantic(one, seen) for one in inner)


def _is_pydantics(thing: Any) -> bool:
    if hasattr(thing, "__get_pydantic_core_schema__") or hasattr(thing, "__pydantic_validator__"):
        return True
    module = (thing if isinstance(thing, type) else type(thing)).__module__
    return module.partition(".")[0] in ("pydantic", "annotated_types")


def _fits_msgspec(annotation: Any) -> bool:
    try:
        msgspec.json.Decoder(annotation)
        return not _holds_custom(msgspec.inspect.type_info(annotation), set())
    except (TypeError, NameError):
        return False


def _holds_custom(info: Any, seen: set[int]) -> bool:
    if id(info) in seen:
        return False
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        return True
    if isinstance(info, msgspec.Struct):
        return any(_holds_custom(getattr(info, name), seen) for name in info.__struct_fields__)
    return isinstance(info, tuple) and any(_holds_custom(one, seen) for one in info)


def fields_type(fields: Mapping[str, tuple[Any, bool]]) -> Any:
    """A body whose fields are these, by name: their annotations, and whether they must be there.

    A TypedDict, since it may have any field names, which a pydantic model may not, and both libraries know it.
    """
    make: Any = typing.TypedDict
    pydantics = any(wants_pydantic(annotation) for annotation, _ in fields.values())
    if pydantics:
        import typing_extensions  # pydantic takes the standard library's only from Python 3.12 on

        make = typing_extensions.TypedDict
    wrapped = {
        name: typing.Required[annotation] if required else typing.NotRequired[annotation]
        for name, (annotation, required) in fields.items()
    }
    body = make("body", wrapped)
    if pydantics:
        body.__pydantic_config__ = {"val_json_bytes": "base64"}  # as `encode` writes bytes that are within JSON
    return body
