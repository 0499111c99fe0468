"""How commands end: exit codes, and the one line that an error is told in."""

from __future__ import annotations

import enum

from carteiro.errors import BrokerUnavailable, CarteiroError


class Exit(enum.IntEnum):
    """What the shell sees. A second signal, which skips the grace of `run`, exits with 128 + its number instead."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    INTERRUPTED = 130


CODES_HELP = (
    "Exit codes: 0 done, or stopped on request; 1 failed; 2 wrong usage; 3 the broker is not available; "
    "128 + n stopped at once by signal n (130 by ctrl-C)."
)


class CommandError(CarteiroError):
    """A command that cannot do what was asked. `preface` is printed above its line: a traceback of the user's code."""

    def __init__(self, text: str, *, preface: str = "") -> None:
        super().__init__(text)
        self.preface = preface


class UsageError(CommandError):
    """Options or arguments that do not fit together."""


def exit_code(error: BaseException) -> int:
    if isinstance(error, BrokerUnavailable):
        return Exit.UNAVAILABLE
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return Exit.USAGE if isinstance(error, UsageError) else Exit.FAILED


def explain(error: BaseException) -> str:
    """What is printed of an error: `carteiro: …` on one line, below its preface if it has one."""
    text = " ".join(str(error).split())
    if not isinstance(error, CarteiroError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text += " (CARTEIRO_DEBUG=1 shows the traceback)"
    preface = error.preface if isinstance(error, CommandError) else ""
    return f"{preface}carteiro: {text}"
