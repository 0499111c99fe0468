"""One channel of a connection: calls that are answered in the order asked, and contents that come by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pamqp import base, commands, frame

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.mishaps import explain
from carteiro.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    from carteiro.backends.rabbitmq.link import Link

METHOD, HEADER, BODY = 1, 2, 3
DELIVER: Final = 0x003C003C
_RETURN, _GET_OK = 0x003C0032, 0x003C0047
_ACK, _NACK, _CANCEL = 0x003C0050, 0x003C0078, 0x003C001E

_method_of = struct.Struct(">I").unpack_from
_tag_and_flag = struct.Struct(">QB").unpack_from
_body_size = struct.Struct(">Q").unpack_from
_pack_head = struct.Struct(">BHI").pack
_pack_ack = struct.Struct(">BHIIQBB").pack

Content = tuple[int, int, bytes, bytes, bytes, bytes]
"""Tag, whether it was delivered before, exchange, routing key, properties, body: what a delivery or a get brings. Of
what is returned the tag is AMQP's reason."""


class Channel:
    """One channel of a link. What comes by itself is given to the `on_…` of its owner."""

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.inbox: list[Content] = []
        """Deliveries that have come; the owner empties it."""
        self.on_arrival: Callable[[], None] = nothing
        self.on_return: Callable[[Content], None] = ignored
        self.on_confirm: Callable[[int, bool, bool], None] = ignored
        """With the sequence number, whether it is for all up to it, and whether the server has taken them."""
        self.on_cancel: Callable[[], None] = nothing
        """The server has ended the consumer: its queue is gone."""
        self.on_closed: Callable[[BrokerError], None] = ignored
        self.error: BrokerError | None = None
        """Why it is closed, once it is."""
        self._waiting: deque[asyncio.Future[Any]] = deque()
        # What is being received: which method, with what, and its content so far.
        self._method = 0
        self._fields: tuple[int, int, bytes, bytes] = (0, 0, b"", b"")
        self._properties = b""
        self._left = 0
        self._parts: list[bytes] = []

    def ask(self, method: bytes) -> asyncio.Future[Any]:
        """The answer to come: a method, or for a Get what it got, or None. Answers come in the order asked."""
        answer = self.link.loop.create_future()
        if self.error is not None:
            fail(answer, self.error)
        else:
            self._waiting.append(answer)
            self.say(method)
        return answer

    async def call(self, method: bytes) -> Any:
        """Raises BrokerUnavailable where the link is lost or no answer comes, Refused where the server says no."""
        return await self.answered(self.ask(method))

    async def answered(self, answer: asyncio.Future[Any]) -> Any:
        """What was asked for before; raises as `call` does. Who is cancelled may ask for it again."""
        try:
            async with asyncio.timeout(self.link.address.timeout):
                return await asyncio.shield(answer)
        except TimeoutError:
            self.link.abort(f"no answer within {self.link.address.timeout:g} s")
            raise self.link.loss from None

    def say(self, method: bytes) -> None:
        """A method that has no answer."""
        self.write(_pack_head(METHOD, self.number, len(method)) + method + b"\xce")

    def write(self, frames: bytes) -> None:
        if self.error is None:
            self.link.write(frames)

    def ack(self, tag: int, *, multiple: bool = False) -> bytes:
        """The frame."""
        return _pack_ack(METHOD, self.number, 13, _ACK, tag, multiple, 0xCE)

    def give_back(self, tag: int) -> bytes:
        """The frame that makes the server deliver it again, to whom it likes; for a quorum queue that is an attempt."""
        return _pack_ack(METHOD, self.number, 13, _NACK, tag, 0b10, 0xCE)

    def frames(self, method: bytes, properties: bytes, body: bytes) -> bytes:
        """A method with content. `method` is its payload, `properties` flags and values."""
        number, size = self.number, len(body)
        head = [
            _pack_head(METHOD, number, len(method)), method, b"\xce",
            _pack_head(HEADER, number, 12 + len(properties)), b"\x00\x3c\x00\x00", size.to_bytes(8, "big"), properties,
            b"\xce",
        ]  # fmt: skip
        room = self.link.frame_max - 8
        for start in range(0, size, room):
            part = body[start : start + room]
            head += (_pack_head(BODY, number, len(part)), part, b"\xce")
        return b"".join(head)

    async def close(self) -> None:
        if self.error is None:
            with contextlib.suppress(BrokerError):
                await self.call(methods.channel_close())
        self.end(BrokerUnavailable("the channel is closed"))

    def retire(self) -> None:
        """Close it without waiting for that; its number is free again once the server has agreed."""
        if self.error is None:
            self.on_arrival, self.on_closed = nothing, ignored
            self.say(methods.channel_close())
            self._end(BrokerUnavailable("the channel is closed"))

    def end(self, error: BrokerError) -> None:
        """It is closed, by whomever: what waits for an answer fails."""
        if self.error is None:
            self.link.forget(self)
            self._end(error)

    def _end(self, error: BrokerError) -> None:
        self.error = error
        while self._waiting:
            fail(self._waiting.popleft(), error)
        self.on_closed(error)

    # -- what comes ------------------------------------------------------------------------------------------------

    def take(self, kind: int, data: bytes, at: int, stop: int) -> None:
        """One frame; its payload is data[at:stop]."""
        if kind == BODY:
            self._take_body(data[at:stop])
        elif kind == HEADER:
            self._properties, self._left = data[at + 12 : stop], _body_size(data, at + 4)[0]
            if not self._left:
                self._complete(b"")
        elif kind == METHOD:
            method = _method_of(data, at)[0]
            at += 4
            if method in (_ACK, _NACK):
                tag, flags = _tag_and_flag(data, at)
                self.on_confirm(tag, bool(flags & 1), method == _ACK)
            elif method == DELIVER:
                self._begin(method, data, at + 1 + data[at])  # past the consumer's tag: its feed is the channel's
            elif method == _GET_OK:
                self._begin(method, data, at)
            elif method == _RETURN:
                reason = int.from_bytes(data[at : at + 2], "big")
                at += 2
                self._method, self._fields = method, (reason, 0, *_place(data, at + 1 + data[at]))  # past its words
            elif method == _CANCEL:
                self.on_cancel()
            else:
                unmarshalled = frame.unmarshal(data[at - 11 : stop + 1])[2]
                assert isinstance(unmarshalled, base.Frame)
                self._take_method(unmarshalled)

    def _begin(self, method: int, data: bytes, at: int) -> None:
        tag, again = _tag_and_flag(data, at)
        self._method, self._fields = method, (tag, again, *_place(data, at + 9))

    def _take_body(self, part: bytes) -> None:
        self._left -= len(part)
        if self._left or self._parts:
            self._parts.append(part)
        if self._left:
            return
        if self._parts:
            part, self._parts = b"".join(self._parts), []
        self._complete(part)

    def _complete(self, body: bytes) -> None:
        content = (*self._fields, self._properties, body)
        if self._method == DELIVER:
            self.deliver(content)
        elif self._method == _GET_OK:
            self._answer(content)
        else:
            self.on_return(content)

    def deliver(self, content: Content) -> None:
        if not self.inbox:
            self.link.touched.append(self)
        self.inbox.append(content)

    def _take_method(self, method: base.Frame) -> None:
        """Of the rare kind."""
        if isinstance(method, commands.Channel.Close):
            self.say(methods.channel_close_ok())
            self.end(explain(method.reply_code or 0, method.reply_text, self.link.name))
        elif isinstance(method, commands.Channel.Flow):
            self.say(methods.flow_ok(bool(method.active)))
        elif self.error is not None:
            self.link.forget(self)  # it was retired, and this is the answer to that
        else:
            self._answer(None if isinstance(method, commands.Basic.GetEmpty) else method)

    def _answer(self, value: object) -> None:
        answer = self._waiting.popleft()
        if not answer.done():
            answer.set_result(value)


def _place(data: bytes, at: int) -> tuple[bytes, bytes]:
    """Exchange and routing key."""
    middle = at + 1 + data[at]
    return data[at + 1 : middle], data[middle + 1 : middle + 1 + data[middle]]


def fail(future: asyncio.Future[Any], error: BrokerError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # it may be that nobody waits for it any more


def nothing() -> None: ...


def ignored(*_: object) -> None: ...
