"""Becomes a server that does not outlive the process that asked for it, not even one that was killed with SIGKILL.

    python tether.py PARENT_PID PROGRAM ARGUMENT…

A program of its own, because the kernel's promise (`PR_SET_PDEATHSIG`) has to be asked for by the child between fork
and exec, and Python code run there (`preexec_fn`) can deadlock in a process that has threads. Where no such promise is
to be had (outside Linux), the server is stopped by what started it, or not at all.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("whoever wanted this server died before it started")
    os.execv(command[0], command)
