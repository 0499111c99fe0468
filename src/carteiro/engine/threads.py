"""Threads of a subscription's own, in which its blocking handlers run.

A shared pool would let the blocking handlers of one subscription starve those of all others. Here each has its own, and
the event loop keeps the books: it knows which thread is idle and hands it a call through that thread's own queue; the
thread hands back the result with one `call_soon_threadsafe`. Nothing is locked and no thread polls.

A thread cannot be stopped. When the task that awaits a call is cancelled (its timeout, a shutdown), the call is
*abandoned*: it runs on by itself, its result is dropped, and another thread takes its place, so that handlers which
hang do not keep others from being handled. That cannot go on without end: once `HANGING` times the pool's size have
been abandoned and still run, no new threads are started, and an error in the log says why. `runs_in="process"` is the
way to stop a handler.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar, TypeVarTuple

from carteiro.errors import HandlerFailed, NotConnected

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

HANGING: Final = 4
"""How many times its size a pool may have in abandoned threads before its calls wait for one of them to end."""

log = logging.getLogger("carteiro.worker")


class _Call:
    """A function to call, and where its end goes: `(value, None)`, or `(None, error)`."""

    __slots__ = ("args", "context", "done", "function", "inbox")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.context = contextvars.copy_context()
        self.done: asyncio.Future[tuple[Any, Exception | None]] = asyncio.get_running_loop().create_future()
        self.inbox: _Inbox | None = None
        """The thread that runs it; None while it waits for one."""


_Inbox = SimpleQueue[_Call | None]


class ThreadRunner:
    """At most `size` calls at a time, in threads that are started when first needed; all from one event loop.

    `name` is the handler's, for errors and logs.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._serving = 0
        self._abandoned = 0
        self._idle: list[_Inbox] = []
        self._running: set[_Call] = set()
        self._waiting: deque[_Call] = deque()
        self._closed = False

    @property
    def abandoned(self) -> int:
        """How many threads still run a call that nobody waits for."""
        return self._abandoned

    async def __call__(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call `function(*args)` in a thread, within a copy of the caller's context variables.

        Raises what it raises; what is no `Exception` (such as SystemExit) comes as HandlerFailed. Cancelling gives up a
        call that waits for a thread, and abandons one that runs.
        """
        if self._closed:
            raise self._gone()
        call = _Call(function, args)
        self._waiting.append(call)
        self._serve()
        try:
            value, error = await call.done
        except asyncio.CancelledError:
            call.done.cancel()  # no effect where the result has just come
            if call.inbox is not None and call.done.cancelled():
                self._abandon()
            raise
        if error is None:
            result: T = value
            return result
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, and this frame held it

    async def close(self, grace: float = 0.0) -> None:
        """Take no more calls, give those that run `grace` seconds, and leave behind those that need longer."""
        self._closed = True
        for call in self._waiting:
            if not call.done.done():
                call.done.set_result((None, self._gone()))
        self._waiting.clear()
        for inbox in self._idle:
            inbox.put(None)
        self._idle.clear()
        if self._running:
            await asyncio.wait([call.done for call in self._running], timeout=grace)

    def _gone(self) -> NotConnected:
        return NotConnected(f"the threads of `{self._name}` are closed")

    def _serve(self) -> None:
        """Give waiting calls to idle threads, and start one where there is room."""
        while self._waiting:
            if self._waiting[0].done.done():
                self._waiting.popleft()
                continue
            if self._idle:
                inbox = self._idle.pop()
            elif self._serving < self._size and self._abandoned < self._size * HANGING:
                inbox = self._start()
            else:
                return
            call = self._waiting.popleft()
            call.inbox = inbox
            self._running.add(call)
            inbox.put(call)

    def _start(self) -> _Inbox:
        inbox: _Inbox = SimpleQueue()
        arguments = (inbox, asyncio.get_running_loop(), self._ended)
        # A daemon: a handler that hangs must not keep the process from ending.
        threading.Thread(target=_work, args=arguments, name=f"carteiro {self._name}", daemon=True).start()
        self._serving += 1
        return inbox

    def _ended(self, call: _Call, value: Any, error: Exception | None) -> None:
        assert call.inbox is not None
        self._running.discard(call)
        if call.done.cancelled():
            self._abandoned -= 1
            self._serving += 1
        else:
            call.done.set_result((value, error))
        if self._closed or self._serving > self._size:
            self._serving -= 1
            call.inbox.put(None)
        else:
            self._idle.append(call.inbox)
        self._serve()

    def _abandon(self) -> None:
        self._serving -= 1
        self._abandoned += 1
        log.warning(
            '`%s` was given up, but no thread can be stopped: %d run on; with runs_in="process" it could be stopped',
            self._name,
            self._abandoned,
        )
        if self._abandoned == self._size * HANGING:
            log.error(
                "`%s` hangs in %d threads: until one of them ends, it gets no new ones", self._name, self._abandoned
            )
        self._serve()


def _ordinary(error: BaseException) -> Exception:
    """`error`, made an Exception if it is none: SystemExit in a handler's thread must not end the worker."""
    if isinstance(error, Exception):
        return error
    failed = HandlerFailed(f"{type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


def _work(
    inbox: _Inbox,
    loop: asyncio.AbstractEventLoop,
    ended: Callable[[_Call, Any, Exception | None], None],
) -> None:
    """The life of one thread: calls from its inbox, until there is None in it."""
    while (call := inbox.get()) is not None:
        value, error = None, None
        try:
            value = call.context.run(call.function, *call.args)
        except BaseException as raised:
            error = _ordinary(raised)
        try:
            loop.call_soon_threadsafe(ended, call, value, error)
        except RuntimeError:
            return  # the loop was closed: nobody waits
        del call, value, error  # hold nothing of a message while waiting for the next
