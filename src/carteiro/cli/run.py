"""`carteiro run`: handle the messages of an app."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from carteiro.cli.exits import CODES_HELP
from carteiro.cli.options import Ready, Report, RunOptions
from carteiro.cli.output import show_json

log = logging.getLogger("carteiro.run")

SHOWN = 12
"""How many subscriptions the line that says ready names."""

Level = Literal["debug", "info", "warning", "error"]


def run(
    app: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, as in hello:app.")],
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="So many processes, each started again when it dies. Without: this one."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="For subscribers that set none of their own.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this group, topic or task queue; can be repeated."),
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start again whenever a .py file here changes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="On a terminal, no lines for each message.")] = False,
    max_messages: Annotated[
        int | None, typer.Option("--max-messages", min=1, help="Replace a worker after about so many messages.")
    ] = None,
    max_memory: Annotated[
        int | None, typer.Option("--max-memory", metavar="MB", min=1, help="Replace a worker that takes more memory.")
    ] = None,
    log_level: Annotated[Level, typer.Option("--log-level")] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON objects, on stderr.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Say ready and stopped as JSON objects on stdout, and nothing else there.")
    ] = False,
) -> int:
    """Handle the messages of an app until SIGTERM or ctrl-C.

    The first signal stops it gracefully, the second one at once; nothing is lost by either.
    """
    supervised = reload or workers is not None or max_messages is not None or max_memory is not None
    options = RunOptions(
        app=app,
        workers=(workers or 1) if supervised else 0,
        concurrency=concurrency,
        only=tuple(only or ()),
        quiet=quiet,
        json=json,
        log_level=log_level,
        log_json=log_json,
        max_messages=max_messages,
        max_memory=None if max_memory is None else max_memory * 1_048_576,
    )
    code = _supervise(options, reload=reload) if supervised else _work(options)
    if json:
        show_json({"event": "stopped", "exit_code": code})
    return code


run.__doc__ = f"{run.__doc__}\n    {CODES_HELP}"


def _work(options: RunOptions) -> int:
    from carteiro.cli.worker import work

    def report(report: Report) -> None:
        if isinstance(report, Ready):
            _announce(options, report, [os.getpid()])

    return work(options, report)


def _supervise(options: RunOptions, *, reload: bool) -> int:
    from carteiro.cli.reload import changes
    from carteiro.cli.supervisor import Supervisor
    from carteiro.telemetry.logs import configure

    configure(options.log_level, "json" if options.log_json else None)

    async def supervise() -> int:
        return await Supervisor(
            options,
            lambda ready, pids: _announce(options, ready, pids),
            changes(Path.cwd()) if reload else None,
        ).run()

    return asyncio.run(supervise())


def _announce(options: RunOptions, ready: Ready, pids: Sequence[int]) -> None:
    if options.json:
        show_json(
            {
                "event": "ready",
                "app": ready.app,
                "broker": ready.broker,
                "subscriptions": ready.subscriptions,
                "pids": pids,
            }
        )
        return
    names = ", ".join(ready.subscriptions[:SHOWN])
    if len(ready.subscriptions) > SHOWN:
        names += f" and {len(ready.subscriptions) - SHOWN} more"
    who = f"pid {pids[0]}" if len(pids) == 1 else f"{len(pids)} workers, pids {', '.join(map(str, pids))}"
    log.info("%s is ready on %s: %s; %s", ready.app, ready.broker, names, who)
