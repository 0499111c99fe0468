"""`carteiro workflow`: runs of chains, groups and chords; how far each is, drawn as a tree."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from carteiro.cli.exits import CommandError
from carteiro.cli.output import age, cut, is_terminal, printable, show_json, show_table
from carteiro.cli.parameters import AppOption, BrokerOption, JsonOption, ListByDefault
from carteiro.cli.target import Target
from carteiro.cli.tasks_shown import told
from carteiro.ports.clock import SYSTEM_CLOCK
from carteiro.tasks.graph import Outline
from carteiro.tasks.records import Status
from carteiro.tasks.runs import NodeView, RunDetails, RunInspection, RunView

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

cli = typer.Typer(
    cls=ListByDefault,
    help="Runs of chains, groups and chords: how far each is. Without a command: list.",
    rich_markup_mode=None,
)

COLUMNS: Final = ("id", "name", "status", "started", "done", "nodes", "took", "error")
FAILURES: Final = 10
"""How many of the failed ones of many are drawn."""
STYLES: Final = {
    "succeeded": "green", "failed": "bold red", "expired": "red", "cancelled": "magenta", "running": "cyan",
    "retrying": "yellow", "waiting": "yellow", "pending": "dim", "skipped": "dim",
}  # fmt: skip
RUN_STATUSES: Final[tuple[Status, ...]] = ("pending", "running", "succeeded", "failed", "cancelled", "expired")


def status(text: str) -> str:
    if text not in RUN_STATUSES:
        raise typer.BadParameter(f"`{text}` is no status of a run: it is {', '.join(RUN_STATUSES)}")
    return text


@cli.command("list")
def list_(
    status: Annotated[
        list[str] | None,
        typer.Option("--status", metavar="STATUS", parser=status, help=f"{', '.join(RUN_STATUSES)}. Can be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, newest first.")] = 20,
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """List runs, the newest first.

    `done` is how many of its nodes have succeeded: a node is a task of the run, or makes a list of the results of many.

    \b
    carteiro workflow list --status running --status pending
    """
    wanted: frozenset[Status] = frozenset(one for one in RUN_STATUSES if one in (status or ()))

    async def look() -> tuple[list[RunView], bool]:
        async with Target(app, broker).tasks() as inspection:
            return await RunInspection(inspection).runs(wanted, limit)

    shown, more = asyncio.run(look())
    if json:
        show_json([_run_json(run) for run in shown])
        return
    if not shown:
        print("no such runs" if wanted else "no runs")
        return
    show_table(
        COLUMNS,
        [
            (run.id, cut(run.name, 60), run.status, f"{age(SYSTEM_CLOCK.time() - run.created)} ago", run.done,
             run.nodes, age(_took(run)), None if run.error is None else cut(run.error, 60))
            for run in shown
        ],
    )  # fmt: skip
    if more:
        print(f"and more: --limit {limit * 10} shows up to so many")


@cli.command()
def show(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """Draw a run as a tree, with the state of each part.

    `.7` is node 7, the task RUN.7: `carteiro tasks show RUN.7` shows all of it. What will not run any more, since what
    it depends on has failed or the run is over, is `skipped`.

    With --json `tasks` are the nodes, and `outline` is the shape: ["task", node, name], ["chain" or "group" or
    "collect", [...]], ["many", first node, last node, label, count], ["with", outline, [links], [error callbacks]].
    """

    async def look() -> RunDetails:
        async with Target(app, broker).tasks() as inspection:
            details = await RunInspection(inspection).run(run)
            if details is None:
                raise _unknown(run)
            return details

    details = asyncio.run(look())
    if json:
        nodes = [_node_json(node) for node in details.nodes.values()]
        show_json({**_run_json(details.run), "outline": details.outline, "tasks": nodes})
        return
    from rich.console import Console

    Console(highlight=False).print(_tree(details), soft_wrap=not is_terminal())


@cli.command()
def cancel(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...")],
    app: AppOption = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """Cancel runs, for good: what is left of each will not run, and what runs is interrupted."""

    async def act() -> dict[str, bool | None]:
        async with Target(app, broker).tasks() as inspection:
            asked = RunInspection(inspection)
            return {run: await asked.cancel(run) for run in runs}

    done = asyncio.run(act())
    if json:
        show_json([{"id": run, "cancelled": bool(cancelled)} for run, cancelled in done.items()])
    else:
        for run, cancelled in done.items():
            if cancelled is not None:
                print(f"cancelled {run}" if cancelled else f"{run} was over already")
    unknown = [run for run, cancelled in done.items() if cancelled is None]
    if unknown:
        raise _unknown(*unknown)


def _unknown(*runs: str) -> CommandError:
    return CommandError(f"there is no run {', '.join(f'`{run}`' for run in runs)}, or none any more")


def _took(run: RunView) -> float | None:
    return None if run.ended is None else run.ended - run.created


# -- the tree ----------------------------------------------------------------------------------------------------------


def _tree(details: RunDetails) -> Tree:
    from rich.tree import Tree

    run = details.run
    took = _took(run)
    lasts = f"after {age(took)}" if took is not None else f"for {age(SYSTEM_CLOCK.time() - run.created)}"
    label = _line(f"run {run.id}", "", run.status, f"{lasts}, {run.done} of {run.nodes} done", run.error)
    tree = Tree(label, guide_style="dim")
    _add(tree, details.outline, details)
    return tree


def _add(tree: Tree, outline: Outline, details: RunDetails) -> Tree:
    """Returns the branch that it has added."""
    kind = outline[0]
    if kind == "task":
        return tree.add(_node_line(details.nodes[outline[1]]))
    if kind == "many":
        return _add_many(tree, outline, details)
    if kind == "with":
        _, part, links, callbacks = outline
        branch = _add(tree, part, details)
        for name, some in (("then", links), ("on error", callbacks)):
            if some:
                beside = branch.add(_plain(name))
                for one in some:
                    _add(beside, one, details)
        return branch
    parts = outline[1]
    branch = tree.add(_plain(_name_of(kind, parts)))
    for part in parts:
        _add(branch, part, details)
    return branch


def _name_of(kind: str, parts: list[Outline]) -> str:
    if kind == "collect":
        return "group, which collects errors"
    if kind == "chain" and len(parts) == 2 and parts[0][0] in ("group", "collect"):
        return "chord"
    return kind


def _add_many(tree: Tree, outline: Outline, details: RunDetails) -> Tree:
    from rich.text import Text

    _, first, last, label, count = outline
    nodes = [node for number, node in details.nodes.items() if first <= number <= last and node.task]
    label = f"{count} more" if label == "…" else f"{count} × {label}"
    text = Text.assemble((printable(label), "bold"), (f" .{first}–.{last}", "dim"))
    for number, (state, many) in enumerate(Counter(node.status for node in nodes).most_common()):
        text.append(", " if number else "  ").append(f"{many} {state}", STYLES[state])
    branch = tree.add(text)
    failed = [node for node in nodes if node.status in ("failed", "expired")]
    for node in failed[:FAILURES]:
        branch.add(_node_line(node))
    if len(failed) > FAILURES:
        branch.add(_plain(f"and {len(failed) - FAILURES} more that failed"))
    return branch


def _node_line(node: NodeView) -> Text:
    facts = []
    if node.at is not None:
        if node.status in ("running", "waiting", "retrying"):
            facts.append(f"for {age(SYSTEM_CLOCK.time() - node.at)}")
        elif node.sent is not None:
            facts.append(f"after {age(node.at - node.sent)}")
    if node.attempt > 1:
        facts.append(f"attempt {node.attempt}")
    if node.progress is not None:
        facts.append(told(node.progress))
    return _line(node.task, f" .{node.node}", node.status, ", ".join(facts), node.error)


def _line(name: str, number: str, status: str, facts: str, error: str | None) -> Text:
    from rich.text import Text

    text = Text.assemble((printable(name), "bold"), (number, "dim"), "  ", (status, STYLES[status]))
    if facts:
        text.append(f" {printable(facts)}")
    if error is not None:
        text.append(f"  {cut(printable(error).replace(chr(10), ' '), 200)}", "red")
    return text


def _plain(text: str) -> Text:
    from rich.text import Text

    return Text(text)


# -- as JSON -----------------------------------------------------------------------------------------------------------


def _run_json(run: RunView) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "status": run.status,
        "created": run.created,
        "ended": run.ended,
        "took": _took(run),
        "done": run.done,
        "nodes": run.nodes,
        "error": run.error,
    }


def _node_json(node: NodeView) -> dict[str, Any]:
    return {
        "node": node.node,
        "id": node.id,
        "task": node.task or None,
        "status": node.status,
        "attempt": node.attempt,
        "sent": node.sent,
        "at": node.at,
        "worker": node.worker or None,
        "error": node.error,
        "progress": node.progress,
    }
