"""One connection to the server, and the channels on it.

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
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final, cast

from pamqp import commands, frame, header
from pamqp.exceptions import PAMQPException

from carteiro.backends.rabbitmq import methods
from carteiro.backends.rabbitmq.address import Address, Server
from carteiro.backends.rabbitmq.channel import BODY, DELIVER, HEADER, METHOD, Channel, fail, nothing
from carteiro.backends.rabbitmq.mishaps import explain, not_accepted
from carteiro.errors import BrokerError, BrokerUnavailable

_BEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_UNSENT: Final = 4 * 1024 * 1024
"""Bytes that may wait to be sent before publishers wait too."""
_FRAME_MAX: Final = 131_072
_CHANNELS: Final = 2047
_ACCESS_REFUSED: Final = 403
_DELIVER_HEAD: Final = DELIVER.to_bytes(4, "big")
_KINDS: Final = (METHOD, HEADER, BODY, _BEAT[0])
_SHORTEST: Final = 32
"""Bytes that the header of a content has at least, with the head of its body after it."""

_frame_head = struct.Struct(">BHI").unpack_from
_tag_and_flag = struct.Struct(">QB").unpack_from


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
        self.on_blocked: Callable[[], None] = nothing
        """Called when `blocked` changes."""
        self.on_lost: Callable[[], None] = nothing
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
        self._missed_beats = False
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
    def is_doubtful(self) -> bool:
        """Whether the server may have given us up: one of us stood still. An answer from it tells (`trust`)."""
        return self._missed_beats or self.silence > self._heartbeat / 2

    def trust(self) -> None:
        self._missed_beats = False

    def check_takes(self) -> None:
        """Raises BrokerUnavailable while the server takes nothing that is published."""
        if self.blocked is not None:
            raise BrokerUnavailable(
                f"`{self.name}` takes no messages now, it is short of something ({self.blocked}): they wait until it "
                "has enough again, while what is there is still handled"
            )

    # -- its life --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Raises BrokerUnavailable where no server answers, Refused where one does not let us in."""
        self.loop = asyncio.get_running_loop()
        self.heard = self.loop.time()
        servers = list(self.address.servers)
        first = random.randrange(len(servers))  # the nodes of a cluster share the work
        troubles: list[str] = []
        doubtful: BrokerError | None = None
        for server in servers[first:] + servers[:first]:
            try:
                await self._connect(server)
            except ssl.SSLCertVerificationError as error:
                doubtful = BrokerError(
                    f"`{self.name}` shows a certificate that is not accepted ({error}): name its authority with "
                    "ssl_ca_certs=FILE or, if only the host's name differs, set ssl_check_hostname=false"
                )
                troubles.append(str(doubtful))
            except (OSError, TimeoutError) as error:
                troubles.append(f"{server}: {str(error) or type(error).__name__}")
            else:
                return
        if doubtful is not None and len(servers) == 1:
            raise doubtful
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
            raise OSError(str(error).removeprefix(f"lost `{self.name}`: ")) from error
        except TimeoutError:
            self.abort("no answer")
            raise TimeoutError(f"no answer within {self.address.connect_timeout:g} s") from None
        except asyncio.CancelledError:
            self.abort("nobody waits for it any more")
            raise
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
        fail(self._opening, error)
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

    def connection_lost(self, exc: Exception | None) -> None:
        said = f": {exc}" if exc else ""
        if not self._opening.done():
            said += f"; is that its port, and one {'without' if self.address.tls is None else 'with'} TLS?"
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
        now = self.loop.time()
        if now - self.heard > self._heartbeat:  # it speaks twice in that time
            self._missed_beats = True
        self.heard = now
        if self._tail:
            data = self._tail + data
        try:
            self._tail = self._take(data)
        except (PAMQPException, ValueError, LookupError, struct.error) as error:
            self.abort(f"it does not speak AMQP 0-9-1 ({error!r})")
            return
        while self.touched:
            self.touched.pop().on_arrival()

    def _take(self, data: bytes) -> bytes:
        """All frames that are whole; returns the rest. A short delivery, three frames, is one step: most are."""
        at, end = 0, len(data)
        while end - at >= 8:
            kind, number, size = _frame_head(data, at)
            stop = at + 7 + size
            if stop >= end:
                if kind not in _KINDS:
                    raise ValueError(f"it says {data[at : at + 16]!r}")
                break
            if data[stop] != 0xCE:
                raise ValueError("a frame that does not end")
            channel = self._channels.get(number)
            if channel is None:
                if number == 0 and kind == METHOD:
                    self._take_own(frame.unmarshal(data[at : stop + 1])[2])
            elif kind == METHOD and data.startswith(_DELIVER_HEAD, at + 7) and end - stop > _SHORTEST:
                head = stop + 1
                kinds = _frame_head(data, head)
                properties = head + 7 + kinds[2]
                length = int.from_bytes(data[head + 15 : head + 19], "big")
                body = properties + 1
                whole = body + 7 + length
                if (
                    whole < end
                    and length
                    and kinds[:2] == (HEADER, number)
                    and _frame_head(data, body) == (BODY, number, length)
                ):
                    place = at + 12 + data[at + 11]
                    tag, again = _tag_and_flag(data, place)
                    place += 9
                    key = place + 1 + data[place]
                    channel.deliver(
                        (
                            tag, again, data[place + 1 : key], data[key + 1 : key + 1 + data[key]],
                            data[head + 19 : properties], data[body + 7 : whole],
                        )
                    )  # fmt: skip
                    stop = whole
                else:
                    channel.take(kind, data, at + 7, stop)
            else:
                channel.take(kind, data, at + 7, stop)
            at = stop + 1
        return data[at:]

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
            if self._transport is not None:
                self._transport.close()
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
