"""Processes of a subscription's own, in which its handlers run when one must be able to stop them.

Each child runs one call at a time, and a call takes place in one child from its start to its end. So the end of a child
is the end of its call and of nothing else, and there are three of them:

    idle -> running -> idle          the reply came
            running -> gone          the awaiting task was cancelled (a timeout, a shutdown): the child is killed
            running -> gone          the child died by itself (out of memory, os._exit): the call fails with WorkerLost

A cancelled call raises only after its child is gone: what follows, a retry for one, never overlaps with it. A child
that went while it ran a call is replaced at once, off the path of any message. A child that starts is never killed by a
cancelled call: else a timeout shorter than an import would let no child ever get ready.

Children are started with `spawn`: a fork would copy the threads' locks and the connections of its parent. They find
the parent's `sys.path` and its main module, as `multiprocessing` arranges it; a script that is run as `python shop.py`
needs its `if __name__ == "__main__":`. A function travels as its module and name, so it must stand at its module's top;
arguments, results and exceptions are pickled between parent and child, and go nowhere else. `child.py` is the other
end. Unix only: the two talk over a socket pair.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import pickle
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, TypeVarTuple

from carteiro.engine.child import LENGTH, SIGNALS, Failure, load, serve
from carteiro.errors import HandlerFailed, InvalidHandler, NotConnected, WorkerLost

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = logging.getLogger("carteiro.worker")


class ProcessRunner:
    """At most `size` calls at a time, in child processes started when first needed; all from one event loop.

    `name` is the handler's, for errors and logs.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        self._waiting: deque[asyncio.Future[_Child]] = deque()
        self._starts: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __call__(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call `function(*args)` in a child.

        Raises what it raises, with the child's traceback as a note; HandlerFailed where that cannot be pickled or is no
        Exception; InvalidHandler where the function, an argument or the result cannot be pickled; WorkerLost when the
        child dies. Cancelling kills the child and returns when it is gone.
        """
        request = _request(self._name, function, args)
        child = await self._acquire(function)
        try:
            reply = await child.ask(request)
        except (EOFError, OSError):
            child.kill()  # it may have closed its end and live on
            ending = await child.ended
            raise WorkerLost(f"the process that ran `{self._name}` {ending}") from None
        except BaseException:
            child.kill()
            await asyncio.shield(child.ended)
            raise
        self._release(child)
        result: T = _result(self._name, reply, child.pid)
        return result

    async def start(self, function: Callable[..., Any]) -> None:
        """Have one child ready with `function`'s module loaded, so that the first message does not wait for that.

        Raises InvalidHandler where a child cannot import the function, WorkerLost where no child can start.
        """
        _request(self._name, function, ())
        self._release(await self._acquire(function))

    async def close(self, grace: float = 0.0) -> None:
        """Take no more calls, give those that run `grace` seconds, then kill. When it returns, every child is gone."""
        self._closed = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._gone())
        ended = [child.ended for child in self._children]
        if ended:
            for child in self._children:
                child.dismiss()
            await asyncio.wait(ended, timeout=grace)
            self._kill()
            await asyncio.wait(ended)
        if self._starts:
            await asyncio.wait(self._starts)

    async def _acquire(self, function: Callable[..., Any]) -> _Child:
        if self._closed:
            raise self._gone()
        if self._idle:
            return self._idle.pop()
        waiter: asyncio.Future[_Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            if len(self._starts) < len(self._waiting):
                self._grow(function)
            return await waiter
        except BaseException:
            if not waiter.cancel() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())
            raise

    def _release(self, child: _Child) -> None:
        """Give an idle child to the call that has waited longest."""
        waiter = self._next_waiter()
        if waiter is None:
            self._idle.append(child)
        else:
            waiter.set_result(child)

    def _grow(self, function: Callable[..., Any]) -> None:
        """Start one more child, if there is room for it."""
        if self._closed or len(self._children) == self._size:
            return
        child = _Child(self._name)
        self._children.add(child)
        self._starts.add(asyncio.get_running_loop().create_task(self._start(child, function)))

    async def _start(self, child: _Child, function: Callable[..., Any]) -> None:
        trouble: Exception | None = None
        try:
            await child.open()
            reply = await child.ask(_request(self._name, load, (function,)))
        except (EOFError, OSError):
            trouble = WorkerLost(
                f"the process for `{self._name}` {await child.ended} before it was ready; its stderr says why "
                '(a script that starts the app itself must do so under `if __name__ == "__main__":`)'
            )
        else:
            try:
                _result(self._name, reply, child.pid)
            except Exception as error:
                trouble = error
                child.kill()
                await child.ended
        task = asyncio.current_task()
        assert task is not None
        self._starts.discard(task)
        if trouble is None:
            child.ended.add_done_callback(partial(self._forget, child, function))
            self._release(child)
        else:
            self._children.discard(child)
            self._refuse(function, trouble)

    def _refuse(self, function: Callable[..., Any], error: Exception) -> None:
        """A child could not start: tell the call that has waited longest, and try again for the others."""
        waiter = self._next_waiter()
        if waiter is None:
            log.warning("%s", error)
        else:
            waiter.set_exception(error)
        if self._waiting:
            self._grow(function)

    def _next_waiter(self) -> asyncio.Future[_Child] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _forget(self, child: _Child, function: Callable[..., Any], _ended: asyncio.Future[str]) -> None:
        self._children.discard(child)
        if child in self._idle:
            self._idle.remove(child)  # the next call that finds none starts another
        else:
            self._grow(function)

    def _kill(self) -> None:
        for child in self._children:
            child.kill()

    def _gone(self) -> NotConnected:
        return NotConnected(f"the processes of `{self._name}` are closed")


class _Child:
    """One child process, as its parent sees it: a stream to ask through, and a thread that waits for its end."""

    def __init__(self, name: str) -> None:
        self._ours, self._theirs = socket.socketpair()
        # A daemon, for `multiprocessing`: at exit it would else wait for children of a runner that was never closed.
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(self._theirs, name), name=f"carteiro {name}", daemon=True
        )
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked = False
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """How the process ended, as the end of a sentence."""

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def open(self) -> None:
        """Begin to start it. What is asked waits until it is up."""
        arguments = (self._process, self._theirs, asyncio.get_running_loop(), self.ended)
        threading.Thread(target=_watch, args=arguments, name=self._process.name, daemon=True).start()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._ours)
        self.ended.add_done_callback(lambda _: self._close())

    async def ask(self, request: bytes) -> bytes:
        """Send a request and return the reply. Raises EOFError or OSError when the child is gone."""
        assert self._reader is not None
        assert self._writer is not None
        self._asked = True
        try:
            self._writer.write(LENGTH.pack(len(request)) + request)
            await self._writer.drain()
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            return await self._reader.readexactly(length)
        finally:
            self._asked = False
            if self.ended.done():
                self._close()

    def dismiss(self) -> None:
        """Let it end by itself, once the call that it runs has ended."""
        if self._writer is None:
            self._ours.close()
        elif not self._writer.is_closing():
            self._writer.write_eof()

    def kill(self) -> None:
        if self._process.pid is not None:
            self._process.kill()

    def _close(self) -> None:
        if self._writer is not None and not self._asked:  # its last reply may still be on its way through the stream
            self._writer.close()


def _watch(
    process: BaseProcess,
    theirs: socket.socket,
    loop: asyncio.AbstractEventLoop,
    ended: asyncio.Future[str],
) -> None:
    """The life of the thread beside a child: start it, wait for its end, tell how it ended."""
    # The child is born with this thread's mask: neither signal can hit it before `serve` has its handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
        theirs.close()
        # `multiprocessing` would send SIGTERM at exit, and then wait. What is registered after its own comes before it.
        atexit.register(process.kill)
        process.join()
        atexit.unregister(process.kill)
        ending = _describe(process.exitcode)
    except Exception as error:
        theirs.close()
        ending = f"could not be started ({type(error).__name__}: {error})"
    try:
        loop.call_soon_threadsafe(_tell, ended, ending)
    except RuntimeError:
        return  # the loop was closed: nobody waits


def _tell(ended: asyncio.Future[str], ending: str) -> None:
    if not ended.done():
        ended.set_result(ending)


def _describe(code: int | None) -> str:
    if code is None:
        return "ended without an exit code"
    if code >= 0:
        return f"exited with code {code}"
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (has the machine run out of memory?)"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"


def _request(name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise _cannot_send(name, function, args, error) from error


def _cannot_send(name: str, function: Callable[..., Any], args: tuple[Any, ...], error: Exception) -> InvalidHandler:
    try:
        pickle.dumps(function)
    except Exception:
        return InvalidHandler(
            f"`{name}` runs in a process, which cannot import it ({error}): define it at module level"
        )
    kinds = ", ".join(type(arg).__qualname__ for arg in args)
    return InvalidHandler(
        f"`{name}` runs in a process, and one of its arguments ({kinds}) cannot be sent there ({error}): "
        'take what can be pickled, or use runs_in="thread"'
    )


def _result(name: str, reply: bytes, pid: int | None) -> Any:
    try:
        value, failure = pickle.loads(reply)
    except Exception as error:
        raise InvalidHandler(
            f"`{name}` runs in a process, and what it returned cannot be read here ({error}): "
            'return what can be pickled, or use runs_in="thread"'
        ) from error
    if failure is None:
        return value
    raise _error_of(failure, f"in process {pid}, which runs `{name}`")


def _error_of(failure: Failure, place: str) -> Exception:
    error: object = None
    if failure.error is not None:
        try:
            error = pickle.loads(failure.error)
        except Exception:
            error = None  # its type needs what it did not take along: the text has to do
    if not isinstance(error, Exception):  # SystemExit, for one, must not end the worker
        error = HandlerFailed(failure.summary)
    error.add_note(f"{place}:\n{failure.trace}")
    return error
