"""The inside of a process in which handlers run: see `processes.py` for its life and for what it is asked.

Imports little, for a child is started while a message may wait. The parent decides when it ends: it ignores SIGINT (a
terminal sends ctrl-C to all) and SIGTERM (a service manager may, too), and ends when its parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from carteiro.engine.printing import print_whole_lines
from carteiro.errors import InvalidHandler

LENGTH: Final = struct.Struct("!Q")
"""What precedes each request and each reply: its length in bytes."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""What a child ignores; blocked in it until it does."""


class Failure(NamedTuple):
    """What a call raised: pickled by itself where that was possible, as `Type: text`, and its traceback's text."""

    error: bytes | None
    summary: str
    trace: str


def serve(parent: socket.socket, name: str) -> None:
    """The life of a child: one call after another, until the parent sends no more or is gone."""
    print_whole_lines()
    for number in SIGNALS:
        signal.signal(number, _leave_it_to_the_parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # A handler may have processes of its own. Those that are forked must neither hold the socket nor ignore SIGTERM.
    multiprocessing.current_process().daemon = False
    os.register_at_fork(after_in_child=partial(_let_go, parent))
    threading.Thread(target=_end_with_the_parent, name="carteiro parent", daemon=True).start()
    try:
        while True:
            (length,) = LENGTH.unpack(_receive(parent, LENGTH.size))
            reply = _run(name, _receive(parent, length))
            parent.sendall(LENGTH.pack(len(reply)) + reply)
    except (EOFError, ConnectionError):
        parent.close()


def _receive(parent: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = parent.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]
    return data


def _run(name: str, request: bytearray) -> bytes:
    """Run one call; what comes back is a pickled `(value, None)`, or `(None, failure)`."""
    try:
        function, args = pickle.loads(request)
    except Exception as error:
        return _failed(InvalidHandler(f"`{name}` or its arguments cannot be loaded in its process ({error})"), error)
    try:
        value = function(*args)
    except BaseException as error:
        return _failed(error, error)
    try:
        return pickle.dumps((value, None), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _failed(_cannot_return(name, value, error), error)


def _cannot_return(name: str, value: object, error: Exception) -> InvalidHandler:
    return InvalidHandler(
        f"`{name}` runs in a process, and the `{type(value).__qualname__}` that it returned cannot be sent back "
        f'({error}): return what can be pickled, or use runs_in="thread"'
    )


def _failed(error: BaseException, source: BaseException) -> bytes:
    """A reply with `error`, and the traceback of `source` from the handler's first frame on."""
    trace = source.__traceback__
    text = "".join(traceback.format_exception(type(source), source, trace and trace.tb_next))
    summary = f"{type(error).__name__}: {error}"
    try:
        pickled = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
    except Exception:
        pickled = None
    return pickle.dumps((None, Failure(pickled, summary, text)), pickle.HIGHEST_PROTOCOL)


def load(_function: Callable[..., Any]) -> None:
    """Asked of every new child: that this call arrives means that the function's module is loaded."""


def _leave_it_to_the_parent(_number: int, _frame: object) -> None:
    """A handler and not SIG_IGN, which the programs that a handler starts would inherit."""


def _let_go(parent: socket.socket) -> None:
    parent.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
