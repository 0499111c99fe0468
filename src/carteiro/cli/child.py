"""A worker process under a supervisor: `python -m carteiro.cli.child FD OPTIONS`.

FD is its end of a socket pair. On it the child reports, one JSON object a line, and hears when to stop at once, or that
its parent is gone. Whatever stops it, what is to be printed goes to the parent: of many children that fail for one
reason, one is heard. Its options come parsed: the parser of the command line, with the pydantic that it loads, would
cost each child 9 MB.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback

import msgspec

from carteiro.cli.exits import exit_code, explain
from carteiro.cli.options import Failed, Report, RunOptions
from carteiro.cli.worker import work


def main() -> None:
    # The parent has blocked SIGINT in us, and passes on a SIGTERM for it. A handler and not SIG_IGN, which the programs
    # that a user's code starts would inherit.
    signal.signal(signal.SIGINT, _leave_it_to_the_parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(parent.fileno(), False)
    options = msgspec.json.decode(sys.argv[2], type=RunOptions)

    def report(report: Report) -> None:
        with contextlib.suppress(OSError):  # nobody is there to listen
            parent.sendall(msgspec.json.encode(report) + b"\n")

    try:
        code = work(options, report, parent)
    except BaseException as error:
        code = exit_code(error)
        trace = traceback.format_exc() if os.environ.get("CARTEIRO_DEBUG") else ""
        report(Failed(trace + explain(error), code))
    sys.exit(code)


def _leave_it_to_the_parent(_number: int, _frame: object) -> None: ...


if __name__ == "__main__":
    main()
