"""Handlers for test_processes.py, in a module that a child imports fast."""

import os
import signal
import subprocess
import sys
from pathlib import Path


class Unfit(Exception):
    """Pickles, but cannot be read back."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("unfit")


def pid() -> int:
    return os.getpid()


def double(number: int) -> int:
    return number * 2


def size(body: bytes) -> int:
    return len(body)


def repeat(body: bytes, times: int) -> bytes:
    return body * times


def search_path() -> list[str]:
    return sys.path


def fail(text: str) -> None:
    raise ValueError(text)


def raise_it(error: Exception) -> None:
    raise error


def fail_unfit() -> None:
    raise Unfit(1, 2)


def exit_politely() -> None:
    sys.exit("enough")


def exit_with_three() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def return_a_lambda() -> object:
    return lambda: None


def spin(fifo: str) -> None:
    """Tell that it runs, and by which process, and then never end."""
    Path(fifo).write_text(str(os.getpid()))
    while True:
        pass


def wait_for(ready: str, go: str) -> str:
    """Tell by a pipe that it runs, and end when something comes from the other."""
    Path(ready).write_text(str(os.getpid()))
    return Path(go).read_text()


def signalled() -> str:
    """Live through what a terminal's ctrl-C and a service manager send."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return "alive"


def end_a_program() -> int:
    """Programs that a handler starts can be terminated."""
    program = subprocess.Popen(["sleep", "1000"])
    program.terminate()
    return program.wait()


def die_with_a_forked_child(ready: str) -> None:
    """Die while a process that was forked here lives on, as a pool of its own would."""
    if os.fork() == 0:
        Path(ready).read_text()
        os._exit(0)
    os._exit(3)
