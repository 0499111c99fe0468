"""One connection to the server, for everything: calls are pipelined on it, and wake-ups come in between.

redis-py finds the server (Sentinel, Cluster) and hiredis speaks its protocol; the connection itself is ours. A
call costs 22 µs of CPU so, 60 µs on redis-py's own connection and 110 µs through its client (docs/decisions/0014), and
one connection serves any number of calls and subscriptions at once. RESP3 sets pushed messages apart from answers.

While there is no connection each call makes one, all of them the same one; who calls decides how often to try. A
connection on which an answer is overdue is given up: what was under way on it fails, and may or may not have been done.
A server that reads no more makes callers wait before they write, so what waits in memory for it stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import hiredis
import msgspec

from carteiro.backends.redis.address import Address, Server, locate
from carteiro.backends.redis.mishaps import AnswerLost, explain, lives_elsewhere
from carteiro.backends.redis.news import KINDS, News
from carteiro.backends.redis.scripts import Script
from carteiro.errors import BrokerError, BrokerUnavailable, NotConnected

_INCOMPLETE: Final = object()
_UNSENT: Final = 4 * 1024 * 1024
"""Bytes that may wait to be sent before callers wait too: one large request, or thousands of small ones."""

Word = bytes | str | int
Listener = Callable[[bytes], None]
Orphaned = Callable[[Any], None]
"""Gets the answer to a call whose caller was cancelled; it may be an error reply."""

_encode = msgspec.msgpack.Encoder().encode
_pack = cast(Callable[[tuple[Word, ...]], bytes], hiredis.pack_command)  # its stub says: a tuple of one


class _Wire(asyncio.Protocol):
    """The connection while it lasts."""

    def __init__(
        self,
        server: str,
        on_push: Callable[[bytes, bytes], None],
        on_news: Callable[[Sequence[Any]], None],
        on_lost: Callable[[_Wire], None],
    ) -> None:
        self.server = server
        self.reason = "the server closed the connection"
        self.answered = 0.0  # when something last came, or nothing was awaited: loop time
        self._on_push = on_push
        self._on_news = on_news
        self._on_lost = on_lost
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self.waiting: deque[tuple[asyncio.Future[Any], Orphaned | None]] = deque()
        self.ended = asyncio.Event()
        self.writable = asyncio.Event()
        """Set while a call may be written, and for good once the connection has ended."""
        self.writable.set()
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=_UNSENT)
        self._loop = asyncio.get_running_loop()
        self._nobody: asyncio.Future[Any] = self._loop.create_future()
        self._nobody.cancel()

    def call(self, *words: Word, orphaned: Orphaned | None = None) -> asyncio.Future[Any]:
        """The answer to come; an error reply comes as its value. `orphaned` gets it if the future was cancelled."""
        answer = self._loop.create_future()
        if self.ended.is_set():
            answer.set_exception(BrokerUnavailable(self._loss()))
        else:
            self._write(words, answer, orphaned)
        return answer

    def subscribe(self, channels: Sequence[bytes]) -> None:
        self.ask("SSUBSCRIBE", *channels)

    def unsubscribe(self, channels: Sequence[bytes]) -> None:
        self.ask("SUNSUBSCRIBE", *channels)

    def ask(self, what: str, *channels: Word) -> None:
        """Subscribe or unsubscribe. It is answered by a push for each, as what these bring, or by an error reply."""
        if channels and not self.ended.is_set():
            self._write((what, *channels), self._nobody, self._refused)
            self.waiting.extend([(self._nobody, self._refused)] * (len(channels) - 1))

    def _write(self, words: tuple[Word, ...], answer: asyncio.Future[Any], orphaned: Orphaned | None) -> None:
        if not self.waiting:
            self.answered = self._loop.time()
        self.waiting.append((answer, orphaned))
        self._transport.write(_pack(words))

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.answered = self._loop.time()
        self._reader.feed(data)
        while True:
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                self.abort(f"it does not speak Redis' protocol ({error})")
                return
            if reply is _INCOMPLETE:
                return
            if type(reply) is hiredis.PushNotification:
                if reply[0] == b"smessage":
                    self._on_push(reply[1], reply[2])
                elif reply[0] in KINDS:
                    self._on_news(reply)
                else:
                    self._told(reply[0])
                continue
            answer, orphaned = self.waiting.popleft()
            if not answer.done():
                answer.set_result(reply)
            elif orphaned is not None:
                orphaned(reply)

    def _told(self, what: bytes) -> None:
        """Of a subscription that it has begun or ended: mostly one that was asked for."""
        if self.waiting and self.waiting[0][0] is self._nobody:
            self.waiting.popleft()
        elif what == b"sunsubscribe":
            self.abort("its node has handed our keys to another one")

    def _refused(self, reply: Any) -> None:
        self.abort(str(explain(str(reply), self.server)))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reason = str(exc) or type(exc).__name__
        self.ended.set()
        self.writable.set()
        waiting, self.waiting = self.waiting, deque()
        for answer, _ in waiting:
            if not answer.done():
                answer.set_exception(AnswerLost(self._loss()))
        self._on_lost(self)

    def _loss(self) -> str:
        return f"the connection to `{self.server}` is lost: {self.reason}"

    def abort(self, reason: str) -> None:
        self.reason = reason
        self._transport.abort()

    async def close(self, patience: float) -> None:
        """What is written is sent, if the server takes it within `patience` seconds."""
        self.reason = "the broker was closed meanwhile"
        self._transport.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.ended.wait()
        finally:
            self._transport.abort()
        await self.ended.wait()


def _is_missing(answer: Any) -> bool:
    """Whether the server does not know the script."""
    return type(answer) is hiredis.ReplyError and str(answer).startswith("NOSCRIPT")


class Link:
    """Calls scripts and commands. All calls come from one event loop."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[_Wire] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._listeners: dict[bytes, set[Listener]] = {}
        self.news = News(self._ask)
        self._lost: set[Callable[[], None]] = set()
        self._users = 0
        self.connections = 0
        """How many there were so far."""

    async def open(self) -> None:
        """Raises BrokerUnavailable, or BrokerError where it is refused."""
        self._users += 1
        try:
            await self._connected()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Broker and store share a link; the last one closes it."""
        self._users = max(self._users - 1, 0)
        if self._users:
            return
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._wire is not None:
            wire, self._wire = self._wire, None
            await wire.close(self.address.timeout)
            self._tell_lost()

    async def run(self, script: Script, *request: Any, orphaned: Orphaned | None = None) -> Any:
        """Call a script with its request; raises what `mishaps.explain` makes of an error.

        AnswerLost, where the connection ended while it was under way: then it may or may not have run. After any
        other error it has not.

        Where the caller is cancelled the script runs all the same, and `orphaned` gets its answer.
        """
        wire = self._wire or await self._connected()
        packed = _encode(request)
        answer = await self._call(wire, orphaned, "EVALSHA", script.sha, 1, self.address.base, packed)
        if _is_missing(answer):
            # The server has restarted or its scripts were flushed: this call was not run, and brings its script along.
            answer = await self._call(wire, orphaned, "EVAL", script.text, 1, self.address.base, packed)
        return self._checked(wire, answer)

    async def command(self, *words: Word) -> Any:
        wire = self._wire or await self._connected()
        return self._checked(wire, await self._call(wire, None, *words))

    async def commands(self, *calls: Sequence[Word]) -> Sequence[Any]:
        """Several at once, and nothing of others in between."""
        wire = self._wire or await self._connected()
        if self._watch is None:
            self._look_later(wire)
        while not wire.writable.is_set():
            await wire.writable.wait()
        answers = await asyncio.gather(*(wire.call(*words) for words in calls))
        return [self._checked(wire, answer) for answer in answers]

    def listen(self, channel: str, listener: Listener) -> None:
        """Call `listener` with each message of the channel, also after the connection was made anew."""
        self.listen_to_all([channel], listener)

    def unlisten(self, channel: str, listener: Listener) -> None:
        self.unlisten_to_all([channel], listener)

    def listen_to_all(self, channels: Iterable[str], listener: Listener) -> None:
        """With one command, however many they are. What is called next is called of a server that has subscribed."""
        fresh: list[bytes] = []
        for channel in map(str.encode, channels):
            listeners = self._listeners.setdefault(channel, set())
            if not listeners:
                fresh.append(channel)
            listeners.add(listener)
        if self._wire is not None:
            self._wire.subscribe(fresh)

    def unlisten_to_all(self, channels: Iterable[str], listener: Listener) -> None:
        left: list[bytes] = []
        for channel in map(str.encode, channels):
            listeners = self._listeners.get(channel)
            if listeners is None:
                continue
            listeners.discard(listener)
            if not listeners:
                del self._listeners[channel]
                left.append(channel)
        if self._wire is not None:
            self._wire.unsubscribe(left)

    def on_lost(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the connection is lost, and when it is closed for good."""
        self._lost.add(listener)

    def off_lost(self, listener: Callable[[], None]) -> None:
        self._lost.discard(listener)

    def send(self, script: Script, *request: Any) -> None:
        """Call a script and look at no answer; where there is no connection it need not be called."""
        wire = self._wire
        if wire is None:
            return
        packed = _encode(request)

        def bring_along(answer: Any) -> None:
            if _is_missing(answer):
                wire.call("EVAL", script.text, 1, self.address.base, packed).cancel()

        wire.call("EVALSHA", script.sha, 1, self.address.base, packed, orphaned=bring_along).cancel()

    async def _call(self, wire: _Wire, orphaned: Orphaned | None, *words: Word) -> Any:
        if self._watch is None:
            self._look_later(wire)
        while not wire.writable.is_set():
            await wire.writable.wait()
        answer = wire.call(*words, orphaned=orphaned)
        try:
            return await answer
        except asyncio.CancelledError:
            if orphaned is not None and answer.done() and not answer.cancelled() and answer.exception() is None:
                orphaned(answer.result())  # cancelled between the answer and its waking
            raise

    def _checked(self, wire: _Wire, answer: Any) -> Any:
        if type(answer) is not hiredis.ReplyError:
            return answer
        text = str(answer)
        if lives_elsewhere(text):
            wire.abort(text)
        raise explain(text, wire.server)

    # -- the connection --------------------------------------------------------------------------------------------

    async def _connected(self) -> _Wire:
        if not self._users:
            raise NotConnected(f"`{self.address}` is not connected")
        if self._wire is not None:
            return self._wire
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._settled)
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if connecting.cancelled() and not self._users:
                raise NotConnected(f"`{self.address}` was closed while it was being connected") from None
            raise

    def _settled(self, connecting: asyncio.Task[_Wire]) -> None:
        self._connecting = None
        if not connecting.cancelled():
            connecting.exception()  # whoever waits has it

    async def _connect(self) -> _Wire:
        address = self.address
        try:
            async with asyncio.timeout(address.connect_timeout):
                server = await locate(address)
                wire = await self._open(server)
                try:
                    await self._greet(wire)
                except BaseException:
                    wire.abort("it was not greeted")
                    raise
        except AnswerLost as error:
            raise BrokerUnavailable(str(error)) from None  # of a greeting: nothing that was asked for is under way
        except TimeoutError:
            doubt = "and the port right?" if address.tls is None else "the port right, and one of TLS?"
            raise BrokerUnavailable(
                f"`{address}` gives no answer within {address.connect_timeout:g} s: is it up, {doubt}"
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise BrokerError(
                f"`{address}` shows a certificate that is not accepted ({error}): name its authority with "
                "ssl_ca_certs=FILE or, if only the host's name differs, set ssl_check_hostname=false"
            ) from error
        except ssl.SSLError as error:
            raise BrokerUnavailable(
                f"`{address}` cannot be reached over TLS ({error}): is the port one of TLS, and are the ssl_… options "
                "what it asks for?"
            ) from error
        except OSError as error:
            raise BrokerUnavailable(
                f"`{address}` cannot be reached ({error}): start the server, or set another broker URL"
            ) from error
        self._wire = wire
        self.connections += 1
        wire.subscribe(tuple(self._listeners))
        self.news.resume()
        return wire

    async def _open(self, server: Server) -> _Wire:
        loop = asyncio.get_running_loop()

        def wire() -> _Wire:
            return _Wire(str(server), self._pushed, self.news.heard, self._wire_lost)

        if server.path is not None:
            return (await loop.create_unix_connection(wire, server.path))[1]
        context = self.address.context()
        return (await loop.create_connection(wire, server.host, server.port, ssl=context))[1]

    async def _greet(self, wire: _Wire) -> None:
        address = self.address
        hello: list[str | int] = ["HELLO", 3]
        if address.password is not None:
            hello += ["AUTH", address.username or "default", address.password]
        calls = [wire.call(*hello), wire.call("CLIENT", "SETNAME", "carteiro")]
        if address.database:
            calls.append(wire.call("SELECT", address.database))
        answers = await asyncio.gather(*calls)
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                if "unknown command 'HELLO'" in str(answer):
                    raise BrokerError(
                        f"`{address}` is older than version 6: carteiro needs Redis 7 or later, or Valkey"
                    )
                raise explain(str(answer), str(address))
        version = answers[0][b"version"].decode()
        if int(version.partition(".")[0]) < 7:
            raise BrokerError(f"`{address}` is version {version}: carteiro needs Redis 7 or later, or Valkey")

    def _pushed(self, channel: bytes, message: bytes) -> None:
        for listener in tuple(self._listeners.get(channel, ())):
            listener(message)

    def _ask(self, what: str, channel: str) -> None:
        if self._wire is not None:
            self._wire.ask(what, channel)

    def _wire_lost(self, wire: _Wire) -> None:
        if self._wire is wire:
            self._wire = None
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
            if self._users:
                self._tell_lost()

    def _tell_lost(self) -> None:
        for listener in tuple(self._lost):
            listener()

    # -- the watch over answers --------------------------------------------------------------------------------------

    def _look_later(self, wire: _Wire) -> None:
        loop = asyncio.get_running_loop()
        self._watch = loop.call_at(wire.answered + self.address.timeout, self._look, wire)

    def _look(self, wire: _Wire) -> None:
        """One timer while answers are awaited, however many: it asks when something last came."""
        self._watch = None
        if not wire.waiting:
            return
        if asyncio.get_running_loop().time() - wire.answered >= self.address.timeout:
            wire.abort(f"no answer for {self.address.timeout:g} s")
        else:
            self._look_later(wire)
