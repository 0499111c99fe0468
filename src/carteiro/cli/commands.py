"""The commands put together, and the one place where their errors end."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

import carteiro
from carteiro.cli import config, dlq, schedule, tasks, topics, workflow
from carteiro.cli.doctor import doctor
from carteiro.cli.exits import CODES_HELP, Exit, exit_code, explain
from carteiro.cli.new import new
from carteiro.cli.publish import publish
from carteiro.cli.request import request
from carteiro.cli.run import run
from carteiro.cli.scheduler import scheduler

DEBUG: Final = "CARTEIRO_DEBUG"

cli = typer.Typer(
    name="carteiro",
    help="Event handlers, tasks and schedules on any broker: run them, publish to them, look after them.",
    epilog=CODES_HELP,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
)
for command in (new, run, scheduler, publish, request, doctor):
    cli.command()(command)
cli.add_typer(topics.cli, name="topics")
cli.add_typer(dlq.cli, name="dlq")
cli.add_typer(tasks.cli, name="tasks")
cli.add_typer(workflow.cli, name="workflow")
cli.add_typer(schedule.cli, name="schedule")
cli.add_typer(config.cli, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"carteiro {carteiro.__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks, as {DEBUG}=1 does.")] = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"  # the workers that `run` starts see it too
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(Exit.USAGE)


def main() -> None:
    """The entry point `carteiro`."""
    try:
        code = cli(standalone_mode=False) or Exit.DONE
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(DEBUG):
            raise
        code = _tell(error)
    sys.exit(code)


def _tell(error: BaseException) -> int:
    """Print the one line that says why, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, typer.Abort):
        print("carteiro: nothing was done", file=sys.stderr)
        return Exit.FAILED
    # What the parser raises is typer's in its new versions and click's in the old ones; both speak so.
    speak = getattr(error, "format_message", None)
    if speak is None:
        print(explain(error), file=sys.stderr)
        return exit_code(error)
    context = getattr(error, "ctx", None)
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    print(f"carteiro: {speak().rstrip('.')}{where}", file=sys.stderr)
    return Exit.USAGE
