"""`carteiro config`: the file of queues, checked and described."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from carteiro.cli.exits import Exit
from carteiro.cli.output import plural, printable, show_json, show_table
from carteiro.cli.parameters import JsonOption

cli = typer.Typer(help="The file that names a service's queues.", no_args_is_help=True, rich_markup_mode=None)


@cli.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As in queues.yaml.")],
    json: JsonOption = False,
) -> int:
    """Check a file of queues, and show what it comes to.

    All that is wrong with it is listed, each with its line. Connects nowhere, and prints no secret.
    """
    from carteiro.config.loading import read

    queues, problems = read(file)
    if queues is None:
        if json:
            show_json({"file": str(file), "problems": problems})
        else:
            print(*map(printable, problems), sep="\n", file=sys.stderr)
            print(f"carteiro: `{file}` cannot be used: {plural(len(problems), 'problem')}", file=sys.stderr)
        return Exit.FAILED
    if json:
        show_json(
            {
                "file": str(file),
                "app": queues.app,
                "brokers": {name: queues.address(name) for name in queues.brokers},
                "queues": [
                    {"name": one.name, "type": one.type, "broker": one.broker, "place": one.place,
                     "consumer": one.consumes, "publisher": one.publishes, "options": sorted(one.policies)}
                    for one in queues.queues.values()
                ],
                "problems": [],
            }
        )  # fmt: skip
        return Exit.DONE
    rows = [
        (one.name, one.type, one.broker, queues.address(one.broker), _yes(one.consumes), _yes(one.publishes),
         ", ".join(sorted(one.policies)) or "-")
        for one in queues.queues.values()
    ]  # fmt: skip
    show_table(("queue", "type", "broker", "address", "consumes", "publishes", "options"), rows)
    return Exit.DONE


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a file of queues, for editors.

    With it they complete the keys and mark what is wrong.
    """
    from carteiro.config.schema import schema_text

    print(schema_text(), end="")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
