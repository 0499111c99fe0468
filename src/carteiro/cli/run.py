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
from carteiro.cli.options import SHOWN, Ready, Report, RunOptions
from carteiro.cli.output import show_json
from carteiro.cli.schedule_shown import when, zone_of
from carteiro.ports.clock import SYSTEM_CLOCK

log = logging.getLogger("carteiro.run")

AppArgument = Annotated[str, typer.Argument(metavar="MODULE:APP", help="The app, as in hello:app.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="So many processes, each started again when it dies. Without: this one."),
]
ReloadOption = Annotated[bool, typer.Option("--reload", help="Start again whenever a .py file here changes.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="On a terminal, no lines for each message.")]
LogLevelOption = Annotated[Literal["debug", "info", "warning", "error"], typer.Option("--log-level")]
LogJsonOption = Annotated[bool, typer.Option("--log-json", help="Log lines as JSON objects, on stderr.")]
EventsOption = Annotated[
    bool, typer.Option("--json", help="Say ready and stopped as JSON objects on stdout, and nothing else there.")
]


def run(
    app: AppArgument,
    workers: WorkersOption = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="For subscribers that set none of their own.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this group, topic or task queue; can be repeated."),
    ] = None,
    no_schedules: Annotated[
        bool,
        typer.Option("--no-schedules", help="Fire no schedules: `carteiro scheduler` does. --only implies it."),
    ] = False,
    reload: ReloadOption = False,
    quiet: QuietOption = False,
    max_messages: Annotated[
        int | None, typer.Option("--max-messages", min=1, help="Replace a worker after about so many messages.")
    ] = None,
    max_memory: Annotated[
        int | None, typer.Option("--max-memory", metavar="MB", min=1, help="Replace a worker that takes more memory.")
    ] = None,
    log_level: LogLevelOption = "info",
    log_json: LogJsonOption = False,
    json: EventsOption = False,
) -> int:
    """Handle the messages of an app, and fire its schedules, until SIGTERM or ctrl-C.

    The first signal stops it gracefully, the second one at once; nothing is lost by either.
    """
    supervised = reload or workers is not None or max_messages is not None or max_memory is not None
    options = RunOptions(
        app=app,
        workers=(workers or 1) if supervised else 0,
        concurrency=concurrency,
        only=tuple(only or ()),
        schedules=not only and not no_schedules,
        quiet=quiet,
        json=json,
        log_level=log_level,
        log_json=log_json,
        max_messages=max_messages,
        max_memory=None if max_memory is None else max_memory * 1_048_576,
    )
    return start(options, reload=reload)


run.__doc__ = f"{run.__doc__}\n    {CODES_HELP}"


def start(options: RunOptions, *, reload: bool) -> int:
    """Work until it is stopped; returns the exit code."""
    code = _supervise(options, reload=reload) if options.workers else _work(options)
    if options.json:
        show_json({"event": "stopped", "exit_code": code})
    return code


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
                "schedules": ready.fires and [{"name": name, "next": due} for name, due, _ in ready.fires[:SHOWN]],
                "pids": pids,
            }
        )
        return
    names = ", ".join(ready.subscriptions[:SHOWN])
    if len(ready.subscriptions) > SHOWN:
        names += f" and {len(ready.subscriptions) - SHOWN} more"
    who = f"pid {pids[0]}" if len(pids) == 1 else f"{len(pids)} workers, pids {', '.join(map(str, pids))}"
    does = [names] if names and options.schedules != "only" else []
    if ready.fires or options.schedules == "only":
        does.append(_fires(ready.fires or ()))
    log.info("%s is ready on %s: %s; %s", ready.app, ready.broker, "; ".join(does), who)


def _fires(soonest: Sequence[tuple[str, float, str | None]]) -> str:
    if not soonest:
        return "has no schedules yet, fires those that are added"
    now = SYSTEM_CLOCK.time()
    next_ones = ", ".join(f"{name} {when(due, now, zone_of(tz))}" for name, due, tz in soonest[:SHOWN])
    return f"fires {next_ones}{', and more' if len(soonest) > SHOWN else ''}"
