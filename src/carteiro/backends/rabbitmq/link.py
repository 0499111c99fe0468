"""One connection to the server: channels on it, calls that are pipelined, and what comes by itself.

pamqp writes and reads the methods that are rare. What comes with every message (deliver, return, ack, nack, header and
body) is read and written here, which is what the speed rests on (docs/decisions/0017). A link lives as long as its
connection: who owns one makes another when it is lost. Of several servers, the nodes of a cluster, the first that
answers is taken.

A heartbeat tells either side that the other is dead: the server takes back what a silent client has claimed, within
twice the heartbeat at most. A call that finds no answer within the timeout gives the connection up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from pamqp import base, commands, frame, header
from pamqp.exceptions import PAMQPException

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.address import Address, Server
from carteiro.backends.rabbitmq.mishaps import explain, not_accepted
from carteiro.errors import BrokerError, BrokerUnavailable

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_DELIVER, _RETURN, _GET_OK = 0x003C003C, 0x003C0032, 0x003C0047
_ACK, _NACK, _CANCEL = 0x003C0050, 0x003C0078, 0x003C001E
_BEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_UNSENT: Final = 4 * 1024 * 1024
"""Bytes that may wait to be sent before publishers wait too."""
_FRAME_MAX: Final = 131_072
_CHANNELS: Final = 2047
_ACCESS_REFUSED: Final = 403

_frame_head = struct.Struct(">BHI").unpack_from
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
        self.on_arrival: Callable[[], None] = _nothing
        self.on_return: Callable[[Content], None] = _ignored
        self.on_confirm: Callable[[int, bool, bool], None] = _ignored
        """With the sequence number, whether it is for all up to it, and whether the server has taken them."""
        self.on_cancel: Callable[[], None] = _nothing
        """The server has ended the consumer: its queue is gone."""
        self.on_closed: Callable[[BrokerError], None] = _ignored
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
            answer.set_exception(self.error)
        else:
            self._waiting.append(answer)
            self.say(method)
        return answer

    async def call(self, method: bytes) -> Any:
        """Raises BrokerUnavailable where the link is lost or no answer comes, Refused where the server says no."""
        answer = self.ask(method)
        try:
            async with asyncio.timeout(self.link.address.timeout):
                return await answer
        except TimeoutError:
            self.link.abort(f"no answer within {self.link.address.timeout:g} s")
            raise self.link.loss from None

    def say(self, method: bytes) -> None:
        """A method that has no answer."""
        self.write(_pack_head(_METHOD, self.number, len(method)) + method + b"\xce")

    def write(self, frames: bytes) -> None:
        if self.error is None:
            self.link.write(frames)

    def ack(self, tag: int, *, multiple: bool = False) -> bytes:
        """The frame."""
        return _pack_ack(_METHOD, self.number, 13, _ACK, tag, multiple, 0xCE)

    def give_back(self, tag: int) -> bytes:
        """The frame that makes the server deliver it again, to whom it likes; for a quorum queue that is an attempt."""
        return _pack_ack(_METHOD, self.number, 13, _NACK, tag, 0b10, 0xCE)

    def frames(self, method: bytes, properties: bytes, body: bytes) -> bytes:
        """A method with content. `method` is its payload, `properties` flags and values."""
        number, size = self.number, len(body)
        head = [
            _pack_head(_METHOD, number, len(method)), method, b"\xce",
            _pack_head(_HEADER, number, 12 + len(properties)), b"\x00\x3c\x00\x00", size.to_bytes(8, "big"), properties,
            b"\xce",
        ]  # fmt: skip
        room = self.link.frame_max - 8
        for start in range(0, size, room):
            part = body[start : start + room]
            head += (_pack_head(_BODY, number, len(part)), part, b"\xce")
        return b"".join(head)

    async def close(self) -> None:
        if self.error is None:
            with contextlib.suppress(BrokerError):
                await self.call(methods.channel_close())
        self.end(BrokerUnavailable("the channel is closed"))

    def retire(self) -> None:
        """Close it without waiting for that; its number is free again once the server has agreed."""
        if self.error is None:
            self.on_arrival, self.on_closed = _nothing, _ignored
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
            _fail(self._waiting.popleft(), error)
        self.on_closed(error)

    # -- what comes ------------------------------------------------------------------------------------------------

    def begin(self, method: int, fields: tuple[int, int, bytes, bytes]) -> None:
        """A method whose content follows."""
        self._method, self._fields = method, fields

    def take_header(self, properties: bytes, size: int) -> None:
        self._properties, self._left = properties, size
        if not size:
            self._complete(b"")

    def take_body(self, part: bytes) -> None:
        self._left -= len(part)
        if self._left:
            self._parts.append(part)
        elif self._parts:
            self._parts.append(part)
            whole = b"".join(self._parts)
            self._parts = []
            self._complete(whole)
        else:
            self._complete(part)

    def _complete(self, body: bytes) -> None:
        content = (*self._fields, self._properties, body)
        if self._method == _DELIVER:
            if not self.inbox:
                self.link.touched.append(self)
            self.inbox.append(content)
        elif self._method == _GET_OK:
            self._answer(content)
        else:
            self.on_return(content)

    def take_method(self, method: base.Frame) -> None:
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


class Link(asyncio.Protocol):
    """A connection, from `open` to `close` or its loss. `purpose` is what operators see beside it."""

    def __init__(self, address: Address, *, heartbeat: float, purpose: str) -> None:
        self.address = address
        self.name = str(address)
        self.frame_max = _FRAME_MAX
        self.version: tuple[int, ...] = ()
        """The server's."""
        self.blocked: str | None = None
        """Why the server takes nothing that is published now, while that is so."""
        self.on_blocked: Callable[[], None] = _nothing
        """Called when `blocked` changes."""
        self.on_lost: Callable[[], None] = _nothing
        self.heard = 0.0
        """When something last came: loop time."""
        self.touched: list[Channel] = []
        self.writable = asyncio.Event()
        """Set while publishers may write, and for good once the link is lost."""
        self._purpose = purpose
        self._heartbeat = max(1, round(heartbeat))
        self._channels: dict[int, Channel] = {}
        self._tail = b""
        self._loss: BrokerError | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._opening: asyncio.Future[None]
        self._closing = False
        self._beat: asyncio.TimerHandle | None = None
        self._beat_due = 0.0
        self._spoke = 0.0

    @property
    def lost(self) -> bool:
        return self._loss is not None

    @property
    def loss(self) -> BrokerError:
        return self._loss or BrokerUnavailable(f"the connection to `{self.name}` is closed")

    @property
    def silence(self) -> float:
        """Seconds since the server was last heard."""
        return self.loop.time() - self.heard

    @property
    def heartbeat(self) -> float:
        """Seconds, as agreed with the server."""
        return self._heartbeat

    # -- its life --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Raises BrokerUnavailable where no server answers, Refused where one does not let us in."""
        self.loop = asyncio.get_running_loop()
        self.heard = self.loop.time()
        servers = list(self.address.servers)
        first = random.randrange(len(servers))  # the nodes of a cluster share the work
        troubles: list[str] = []
        for server in servers[first:] + servers[:first]:
            try:
                await self._connect(server)
            except (OSError, TimeoutError) as error:
                troubles.append(f"{server}: {str(error) or type(error).__name__}")
            else:
                return
        raise BrokerUnavailable(
            f"no RabbitMQ at `{self.address}` ({'; '.join(troubles)}): start it, or mend the broker's URL"
        )

    async def _connect(self, server: Server) -> None:
        self.name = f"{'amqp' if self.address.tls is None else 'amqps'}://{server}"
        self._opening = self.loop.create_future()
        context = self.address.context()
        try:
            async with asyncio.timeout(self.address.connect_timeout):
                await self.loop.create_connection(
                    lambda: self, server.host, server.port, ssl=context,
                    server_hostname=server.host if context is not None else None,
                )  # fmt: skip
                await self._opening
        except BrokerUnavailable as error:
            raise OSError(str(error)) from error
        except TimeoutError:
            self.abort("no answer")
            raise TimeoutError(f"no answer within {self.address.connect_timeout:g} s") from None
        finally:
            if self._opening.done() and not self._opening.cancelled():
                self._opening.exception()

    async def channel(self) -> Channel:
        """Opens one; raises BrokerUnavailable."""
        number = next((one for one in range(1, _CHANNELS + 1) if one not in self._channels), None)
        if number is None:
            raise BrokerError(f"`{self.name}`: no more than {_CHANNELS} channels fit on a connection")
        channel = Channel(self, number)
        if self._loss is not None:
            raise self._loss
        self._channels[number] = channel
        await channel.call(methods.channel_open())
        return channel

    def forget(self, channel: Channel) -> None:
        self._channels.pop(channel.number, None)

    async def close(self) -> None:
        """Say goodbye, for no longer than the timeout for connecting."""
        if self._loss is None and self._transport is not None:
            self._closing = True
            goodbye = self._opening = self.loop.create_future()
            self.write(frame.marshal(commands.Connection.Close(200, "goodbye", 0, 0), 0))
            with contextlib.suppress(TimeoutError, BrokerError):
                async with asyncio.timeout(self.address.connect_timeout):
                    await goodbye
        self.abort("it was closed here")

    def abort(self, reason: str) -> None:
        self._end(BrokerUnavailable(f"lost `{self.name}`: {reason}"))
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: BrokerError) -> None:
        if self._loss is not None:
            return
        self._loss = error
        if self._beat is not None:
            self._beat.cancel()
        self.writable.set()
        _fail(self._opening, error)
        for channel in list(self._channels.values()):
            channel.end(error)
        self.on_lost()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=_UNSENT)
        self._loss, self._tail = None, b""
        self.writable.set()
        self.write(header.ProtocolHeader().marshal())

    def connection_lost(self, error: Exception | None) -> None:
        said = f": {error}" if error else ""
        self._end(BrokerUnavailable(f"lost `{self.name}`: the server closed the connection{said}"))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def write(self, data: bytes) -> None:
        if self._loss is None and self._transport is not None:
            self._spoke = self.loop.time()
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        if self._tail:
            data = self._tail + data
        at, end = 0, len(data)
        try:
            while end - at >= 8:
                kind, number, size = _frame_head(data, at)
                stop = at + 7 + size
                if stop >= end:
                    break
                if data[stop] != 0xCE:
                    raise ValueError("a frame that does not end")
                self._take(kind, number, data, at + 7, stop)
                at = stop + 1
        except (PAMQPException, ValueError, KeyError, IndexError, struct.error) as error:
            self.abort(f"it does not speak AMQP 0-9-1 ({error!r})")
            return
        self._tail = data[at:]
        while self.touched:
            self.touched.pop().on_arrival()

    def _take(self, kind: int, number: int, data: bytes, at: int, stop: int) -> None:
        """One frame; its payload is data[at:stop]."""
        if kind == _BODY:
            if (channel := self._channels.get(number)) is not None:
                channel.take_body(data[at:stop])
        elif kind == _HEADER:
            if (channel := self._channels.get(number)) is not None:
                channel.take_header(data[at + 12 : stop], _body_size(data, at + 4)[0])
        elif kind == _METHOD:
            method = _method_of(data, at)[0]
            at += 4
            if number == 0:
                self._take_own(frame.unmarshal(data[at - 11 : stop + 1])[2])
                return
            channel = self._channels.get(number)
            if channel is None:
                return
            if method == _DELIVER:
                at += 1 + data[at]  # the consumer's tag: a channel has one consumer
                tag, again = _tag_and_flag(data, at)
                at += 9
                middle = at + 1 + data[at]
                channel.begin(method, (tag, again, data[at + 1 : middle], data[middle + 1 : middle + 1 + data[middle]]))
            elif method in (_ACK, _NACK):
                tag, flags = _tag_and_flag(data, at)
                channel.on_confirm(tag, bool(flags & 1), method == _ACK)
            elif method == _GET_OK:
                tag, again = _tag_and_flag(data, at)
                at += 9
                middle = at + 1 + data[at]
                channel.begin(method, (tag, again, data[at + 1 : middle], data[middle + 1 : middle + 1 + data[middle]]))
            elif method == _RETURN:
                code = int.from_bytes(data[at : at + 2], "big")
                at += 2
                at += 1 + data[at]  # the reason in words
                middle = at + 1 + data[at]
                channel.begin(method, (code, 0, data[at + 1 : middle], data[middle + 1 : middle + 1 + data[middle]]))
            elif method == _CANCEL:
                channel.on_cancel()
            else:
                channel.take_method(cast(base.Frame, frame.unmarshal(data[at - 11 : stop + 1])[2]))

    # -- channel 0 -------------------------------------------------------------------------------------------------

    def _take_own(self, method: Any) -> None:
        if isinstance(method, commands.Connection.Start):
            self._introduce(method)
        elif isinstance(method, commands.Connection.Tune):
            self._agree(method)
        elif isinstance(method, commands.Connection.OpenOk):
            self._opening.set_result(None)
        elif isinstance(method, commands.Connection.Close):
            code, text = method.reply_code or 0, method.reply_text
            self.write(frame.marshal(commands.Connection.CloseOk(), 0))
            opening = not self._opening.done()
            denied = opening and code == _ACCESS_REFUSED
            self._end(not_accepted(text, self.name) if denied else explain(code, text, self.name))
        elif isinstance(method, commands.Connection.CloseOk):
            if not self._opening.done():
                self._opening.set_result(None)
        elif isinstance(method, commands.Connection.Blocked):
            self.blocked = method.reason
            self.on_blocked()
        elif isinstance(method, commands.Connection.Unblocked):
            self.blocked = None
            self.on_blocked()

    def _introduce(self, start: commands.Connection.Start) -> None:
        properties: Any = start.server_properties or {}
        self.version = tuple(int(part) for part in str(properties.get("version", "")).split(".") if part.isdecimal())
        us: dict[str, Any] = {
            "product": "carteiro",
            "connection_name": self._purpose,
            "capabilities": {
                "publisher_confirms": True,
                "consumer_cancel_notify": True,
                "basic.nack": True,
                "connection.blocked": True,
                "authentication_failure_close": True,
            },
        }
        address = self.address
        mechanism = "EXTERNAL" if address.external else "PLAIN"
        secret = "" if address.external else f"\0{address.username}\0{address.password}"
        self.write(frame.marshal(commands.Connection.StartOk(us, mechanism, secret, "en_US"), 0))

    def _agree(self, tune: commands.Connection.Tune) -> None:
        self.frame_max = min(tune.frame_max or _FRAME_MAX, _FRAME_MAX)
        if tune.heartbeat:
            self._heartbeat = min(self._heartbeat, tune.heartbeat)
        channels = min(tune.channel_max or _CHANNELS, _CHANNELS)
        self.write(
            frame.marshal(commands.Connection.TuneOk(channels, self.frame_max, self._heartbeat), 0)
            + frame.marshal(commands.Connection.Open(self.address.vhost), 0)
        )
        self._listen()

    def _listen(self) -> None:
        """Say that we live, twice in a heartbeat, and look whether the server does."""
        now, every = self.loop.time(), self._heartbeat / 2
        late = self._beat is not None and now - self._beat_due > every / 2  # it is we who stood still
        if self.silence > 2 * self._heartbeat and not late:
            self.abort(f"nothing was heard of it for {self.silence:.0f} s")
            return
        if now - self._spoke >= every / 2:
            self.write(_BEAT)
        self._beat_due = now + every
        self._beat = self.loop.call_later(every, self._listen)


def _fail(future: asyncio.Future[Any], error: BrokerError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # it may be that nobody waits for it any more


def _nothing() -> None: ...


def _ignored(*_: object) -> None: ...
