"""The one thread that owns the one writing connection.

Requests come from any event loop through a queue. The thread takes all that has gathered, runs it in one transaction
(*group commit*) and only then answers, each loop with one call: what was answered is on the disk. Where a request
fails, the transaction is undone and run again with a savepoint for each, so that it takes no other with it; a commit
that fails fails all. So a request's work may be done twice, and only the file may remember it.

A *fetch* that finds nothing stays here, *parked*. In each transaction the fetches come last, so that what a publish
brings is claimed in the publish's own commit. Otherwise the thread looks again when another process has committed
(`PRAGMA data_version`, 4 µs a look), or when the earliest `visible_at` of what is waited for has come. It looks every
2 ms while something happens, and then waits for a write to the file (see `mailbox.py`); without a parked fetch it does
not look at all. Whether a fetch could get something is read without the lock, so that processes that wait do not stand
in the way of those that work. Waits for entries of the store to change are parked beside the fetches (`waits.py`).

What a crash leaves: SQLite rolls back the open transaction, nobody was answered, and every lease ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from carteiro.backends.sqlite import claims
from carteiro.backends.sqlite.connection import Location, open_reader
from carteiro.backends.sqlite.keeper import Keeper
from carteiro.backends.sqlite.mailbox import Mailbox, open_mailbox
from carteiro.backends.sqlite.mishaps import explain
from carteiro.backends.sqlite.session import Session
from carteiro.backends.sqlite.waits import Wait, Waits
from carteiro.errors import BrokerCorrupted, CarteiroError, NotConnected
from carteiro.message import Delivery, Subscription
from carteiro.ports.clock import Clock, SystemClock

T = TypeVar("T")

_UNSEEN: Final = -1

_encode = msgspec.json.Encoder().encode
_decode_ids = msgspec.json.Decoder(list[int]).decode


class Request:
    """Work for the thread, and the future that waits for its result. `writes` says whether it needs the lock."""

    __slots__ = ("future", "loop", "work", "writes")

    def __init__(self, work: Callable[[Session], Any], *, writes: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.work = work
        self.writes = writes


class Fetch:
    """A wait for deliveries. `unwanted` takes, on its loop, what was claimed for it when nobody waits any more."""

    __slots__ = ("future", "loop", "room", "unwanted")

    def __init__(self, room: Mapping[Subscription, int], unwanted: Callable[[Sequence[Delivery]], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Sequence[Delivery]] = self.loop.create_future()
        self.room = {subscription: limit for subscription, limit in room.items() if limit > 0}
        self.unwanted = unwanted


class _Pace(msgspec.Struct, frozen=True):
    """Seconds between two looks, until so many were in vain; `watch`: a write to the file cuts the wait short."""

    seconds: float
    looks: float
    watch: bool = False


# A commit can be read some milliseconds after its write is seen: after a write, look often for a while.
_WATCHING: Final = (_Pace(0.001, 20), _Pace(0.002, 80), _Pace(0.1, math.inf, watch=True))
_LOOKING: Final = (_Pace(0.002, 500), _Pace(0.005, 2_000), _Pace(0.010, math.inf))


class _Stop(msgspec.Struct, frozen=True, eq=False):
    """The last thing in the queue, and what waits for the file to be closed."""

    closed: asyncio.Future[None] | None = None


_Asked = Request | Fetch | Wait
_Mailbox = Mailbox["_Asked | _Stop | None"]
_Answer = tuple[_Asked, Any, BaseException | None]


class Database:
    """One file, opened by `open` and closed by the last `close`: a broker and its store share it."""

    def __init__(self, location: Location, clock: Clock) -> None:
        self.location = location
        self.clock = clock
        self.keeper = Keeper()
        self._mailbox: _Mailbox | None = None
        self._users = 0
        self._opening = asyncio.Lock()
        self._thread: threading.Thread | None = None
        self._process = 0

    async def open(self) -> None:
        """Raises BrokerUnavailable, BrokerCorrupted or BrokerError, each naming the file, the cause and the way out."""
        async with self._opening:
            if self._mailbox is None:
                opened: asyncio.Future[_Mailbox] = asyncio.get_running_loop().create_future()
                worker = _Worker(self.location, self.clock, self.keeper)
                # A daemon: a program that ends without closing ends; what it was not answered for was not promised.
                thread = threading.Thread(
                    target=worker.run, args=(opened,), name=f"carteiro {self.location.path}", daemon=True
                )
                thread.start()
                self._mailbox = await opened
                self._thread, self._process = thread, os.getpid()
            self._users += 1

    async def close(self) -> None:
        """Commit what is queued; with the last user, fail what is parked, put the log into the file and close it."""
        async with self._opening:
            self._users -= 1
            if self._users == 0 and self._mailbox is not None and self._thread is not None:
                mailbox, self._mailbox = self._mailbox, None
                # Not `to_thread(join)`: when the interpreter exits, no thread can be had any more.
                closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                mailbox.put(_Stop(closed))
                if self._process == os.getpid() and self._thread.is_alive():
                    await closed
                self.keeper = Keeper()

    async def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` in a transaction; returns when it is committed."""
        request = Request(work, writes=True)
        self.put(request)
        result: T = await request.future
        return result

    async def read(self, work: Callable[[Session], T]) -> T:
        """Run `work`, which changes nothing, after all that was asked for before."""
        request = Request(work, writes=False)
        self.put(request)
        result: T = await request.future
        return result

    async def inspect(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a connection of its own, beside the thread: for what may take long, as counting a million."""
        self._open_mailbox()

        def look() -> T:
            try:
                with contextlib.closing(open_reader(self.location)) as connection:
                    return work(connection)
            except sqlite3.Error as error:
                raise explain(error, self.location.path) from error

        return await asyncio.to_thread(look)

    def put(self, request: _Asked) -> None:
        self._open_mailbox().put(request)

    def wake(self) -> None:
        """Make the thread look around: the keeper has something new to keep, or a fetch is no longer wanted."""
        if self._mailbox is not None:
            self._mailbox.put(None)

    def _open_mailbox(self) -> _Mailbox:
        if self._mailbox is None:
            raise NotConnected(f"the broker's file `{self.location.path}` is not open: connect first")
        if self._process != os.getpid():
            raise NotConnected(
                f"the broker's file `{self.location.path}` was opened before this process was forked: "
                "connect in the child, with a broker of its own"
            )
        return self._mailbox


class _Worker:
    """What runs in the thread."""

    def __init__(self, location: Location, clock: Clock, keeper: Keeper) -> None:
        self._location = location
        self._clock = clock
        self._keeper = keeper
        self._parked: list[Fetch] = []
        self._waits = Waits()
        self._answers: list[_Answer] = []
        self._seen = _UNSEEN  # the data version at the last look
        self._next_due: float | None = None  # microseconds: when the next that is waited for becomes visible
        self._quiet = 0  # looks in vain
        self._closed: asyncio.Future[None] | None = None

    def run(self, opened: asyncio.Future[_Mailbox]) -> None:
        loop = opened.get_loop()
        try:
            self._session = Session(self._location, self._clock)
            self._mailbox: _Mailbox = open_mailbox(self._location.path)
        except BaseException as error:
            _call(loop, _fail, opened, explain(error, self._location.path))
            return
        # What moves a clock that is held is no write to the file: there, only looking helps.
        watching = self._mailbox.watches and isinstance(self._clock, SystemClock)
        self._paces = _WATCHING if watching else _LOOKING
        _call(loop, _succeed, opened, self._mailbox)
        stopping = False
        try:
            while not stopping:
                requests, stopping = self._gather(self._pause())
                self._turn(requests)
            self._end()
        finally:
            if self._closed is not None:
                _call(self._closed.get_loop(), _close, self._closed)

    def _gather(self, timeout: float) -> tuple[list[Request], bool]:
        """Wait up to `timeout` seconds for something to do, and take all that is there."""
        requests: list[Request] = []
        stopping = False
        items, written = self._mailbox.take(timeout, watch=self._is_looking() and self._pace().watch)
        for item in items:
            if isinstance(item, Request):
                requests.append(item)
            elif isinstance(item, Fetch):
                self._parked.append(item)
                self._seen = _UNSEEN
            elif isinstance(item, Wait):
                self._waits.take(item)
                self._seen = _UNSEEN
            elif isinstance(item, _Stop):
                self._closed = item.closed
                stopping = True
        if written:
            self._quiet = 0
        return requests, stopping

    def _is_looking(self) -> bool:
        return bool(self._parked or self._waits)

    def _pause(self) -> float:
        if not self._is_looking():
            return self._keeper.pause(self._session)
        pause = self._pace().seconds
        if self._next_due is None:
            return pause
        return min(max(self._next_due / 1_000_000 - self._clock.time(), 0.0), pause)

    def _pace(self) -> _Pace:
        return next(pace for pace in self._paces if self._quiet < pace.looks)

    def _turn(self, requests: list[Request]) -> None:
        """One round: a transaction if there is anything to write, else a look."""
        self._parked = [fetch for fetch in self._parked if not fetch.future.done()]
        requests = [request for request in requests if not request.future.done()]
        try:
            if any(request.writes for request in requests) or self._keeper.is_due(self._session):
                self._commit(requests)
                self._answer()
                self._keeper.shrink(self._session)
            else:
                if requests:
                    self._read(requests)
                if self._is_looking() and self._has_news():
                    self._commit([])
            self._answer()
            if self._waits:
                self._answers += [(wait, changed, None) for wait, changed in self._waits.woken(self._session)]
        except Exception as error:
            self._session.rollback()
            self._keeper.postpone(self._session)
            explained = explain(error, self._location.path)
            waiting: list[_Asked] = [*requests, *self._parked, *self._waits.take_all()]
            self._answers = [(one, None, explained) for one in waiting]
            self._parked = []
        self._answer()

    def _commit(self, requests: list[Request]) -> None:
        session = self._session
        self._begin()
        try:
            answers: list[_Answer] = [(request, request.work(session), None) for request in requests]
        except Exception:
            # Rare: a savepoint for each would cost every request four times that the interpreter's lock changes hands.
            session.rollback()
            self._keeper.again()
            self._begin(careful=True)
            answers = [self._run(request) for request in requests]
        self._next_due = None
        served = [(fetch, self._serve(fetch)) for fetch in self._parked]
        session.commit()
        self._answers += answers
        self._answers += [_deliver(fetch, claimed) for fetch, claimed in served if claimed]
        self._parked = [fetch for fetch, claimed in served if not claimed]
        self._quiet = 0

    def _begin(self, *, careful: bool = False) -> None:
        self._session.begin(careful=careful)
        self._keeper.tend(self._session)

    def _run(self, request: Request) -> _Answer:
        """Run one request's work; if it fails, it alone is undone."""
        connection = self._session.connection
        connection.execute("SAVEPOINT request")
        try:
            answer: _Answer = (request, request.work(self._session), None)
        except Exception as error:
            if not connection.in_transaction:
                raise  # SQLite has rolled back everything, as it does when the disk is full
            connection.execute("ROLLBACK TO request")
            self._session.look()
            answer = (request, None, explain(error, self._location.path))
        connection.execute("RELEASE request")
        return answer

    def _read(self, requests: list[Request]) -> None:
        self._session.look()
        for request in requests:
            try:
                self._answers.append((request, request.work(self._session), None))
            except Exception as error:
                self._answers.append((request, None, explain(error, self._location.path)))

    # -- fetches ---------------------------------------------------------------------------------------------------

    def _has_news(self) -> bool:
        """Whether a parked fetch may get something now. Looks into the table only if it may have changed."""
        version = self._session.data_version()
        due = self._next_due is not None and self._clock.time() * 1_000_000 >= self._next_due
        if version == self._seen and not due:
            self._quiet += 1
            return False
        self._quiet = 0
        self._session.look()
        self._next_due = None
        news = False
        for fetch in self._parked:
            try:
                news = bool(self._visible(fetch)) or news
            except CarteiroError:
                news = True
        self._seen = version
        return news

    def _visible(self, fetch: Fetch) -> list[Subscription]:
        """Those of a fetch's subscriptions that have something visible; notes when the others will."""
        session = self._session
        wanted = {session.routes.get(subscription).id: subscription for subscription in fetch.room}
        ids = _encode(list(wanted)).decode()
        earliest, visible = session.run("look", {"subscriptions": ids, "now": session.now}).fetchone()
        self._expect([earliest])
        return [wanted[id] for id in _decode_ids(visible)]

    def _serve(self, fetch: Fetch) -> list[claims.Claimed] | CarteiroError:
        try:
            # Of a single subscription the claim itself tells when there is something.
            visible = list(fetch.room) if len(fetch.room) == 1 else self._visible(fetch)
            tried = [claims.claim(self._session, subscription, fetch.room[subscription]) for subscription in visible]
        except CarteiroError as error:
            return error
        taken = [claimed for claimed, _ in tried if claimed is not None]
        if not taken:
            self._expect([earliest for _, earliest in tried])
        return taken

    def _expect(self, dues: Iterable[int | None]) -> None:
        """Something that is waited for will be visible by then."""
        for due in dues:
            if due is not None and (self._next_due is None or due < self._next_due):
                self._next_due = due

    # -- answers ---------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        answers, self._answers = self._answers, []
        if len(answers) == 1:
            _call(answers[0][0].loop, _resolve, answers)
            return
        loops: defaultdict[asyncio.AbstractEventLoop, list[_Answer]] = defaultdict(list)
        for answer in answers:
            loops[answer[0].loop].append(answer)
        for loop, part in loops.items():
            _call(loop, _resolve, part)

    def _end(self) -> None:
        closed = NotConnected(f"the broker's file `{self._location.path}` was closed")
        late, _ = self._gather(0)  # asked for by another thread while this one was told to stop
        waiting: list[_Asked] = [*late, *self._parked, *self._waits.take_all()]
        self._answers = [(one, None, closed) for one in waiting]
        self._answer()
        with contextlib.suppress(sqlite3.Error):  # another process may be at it: the next to close does it
            self._session.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._session.close()


def _deliver(fetch: Fetch, claimed: Sequence[claims.Claimed] | CarteiroError) -> _Answer:
    if isinstance(claimed, CarteiroError):
        return fetch, None, claimed
    try:
        return fetch, [delivery for part in claimed for delivery in part.deliveries()], None
    except BrokerCorrupted as error:
        return fetch, None, error


def _resolve(answers: Sequence[_Answer]) -> None:
    for one, result, error in answers:
        if one.future.done():
            if error is None and isinstance(one, Fetch):
                one.unwanted(result)
        elif error is not None:
            one.future.set_exception(error)
        else:
            one.future.set_result(result)


def _succeed(opened: asyncio.Future[_Mailbox], mailbox: _Mailbox) -> None:
    if opened.done():
        mailbox.put(_Stop())  # nobody waits for it any more
    else:
        opened.set_result(mailbox)


def _close(closed: asyncio.Future[None]) -> None:
    if not closed.done():
        closed.set_result(None)


def _fail(opened: asyncio.Future[_Mailbox], error: BaseException) -> None:
    if not opened.done():
        opened.set_exception(error)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to tell
        loop.call_soon_threadsafe(function, *arguments)
