"""`carteiro scheduler`: fire the schedules of an app, and do nothing else."""

from __future__ import annotations

from carteiro.cli.exits import CODES_HELP
from carteiro.cli.options import RunOptions
from carteiro.cli.run import (
    AppArgument,
    EventsOption,
    LogJsonOption,
    LogLevelOption,
    QuietOption,
    ReloadOption,
    WorkersOption,
    start,
)


def scheduler(
    app: AppArgument,
    workers: WorkersOption = None,
    reload: ReloadOption = False,
    quiet: QuietOption = False,
    log_level: LogLevelOption = "info",
    log_json: LogJsonOption = False,
    json: EventsOption = False,
) -> int:
    """Fire the schedules of an app until SIGTERM or ctrl-C, and handle none of its messages.

    What is in the code, and what was added while running. The functions of @app.scheduled are called here. Any number
    of these may run, also beside `carteiro run`, which fires too unless --no-schedules: each firing happens once.
    """
    options = RunOptions(
        app=app,
        workers=(workers or 1) if reload or workers is not None else 0,
        schedules="only",
        quiet=quiet,
        json=json,
        log_level=log_level,
        log_json=log_json,
    )
    return start(options, reload=reload)


scheduler.__doc__ = f"{scheduler.__doc__}\n    {CODES_HELP}"
