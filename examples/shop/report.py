"""What the demo shows: how far it is, and the account."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from carteiro.ports.broker import GroupStatus
from examples.shop.audit import Account

FEW = 5


class ShowProgress(Protocol):
    def __call__(self, done: int) -> None: ...


@contextmanager
def progress(console: Console, total: int) -> Iterator[ShowProgress]:
    """A bar on a terminal, and elsewhere a line for each tenth."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("orders accounted for", total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        if (tenths := done * 10 // total) > shown:
            shown = tenths
            console.print(f"{done} of {total} orders accounted for")

    yield show


def as_table(account: Account) -> Table:
    table = Table(show_footer=True)
    table.add_column("outcome", "all accounted for" if account.balanced else "NOT BALANCED")
    table.add_column("reason")
    table.add_column("orders", f"{account.ends.total()} of {account.total}", justify="right")
    order = {"shipped": 0, "cancelled": 1, "dead": 2}
    for end, number in sorted(account.ends.items(), key=lambda item: (order[item[0].outcome], -item[1])):
        table.add_row(end.outcome, end.reason, str(number))
    return table


def faults(account: Account) -> Iterator[str]:
    for lines, what in ((account.missing, "have no end"), (account.twice, "have more than one end")):
        if lines:
            yield f"{len(lines)} orders {what}:"
            yield from (f"  {line}" for line in lines[:FEW])
            if len(lines) > FEW:
                yield f"  and {len(lines) - FEW} more"


def bystander(status: GroupStatus) -> str:
    return (
        f"the {status.group} was down all the while and held up nobody: "
        f"{status.dead} dead letters, {status.left} still to fail"
    )


def as_json(account: Account, seconds: float) -> dict[str, Any]:
    return {
        "orders": account.total,
        "balanced": account.balanced,
        "outcomes": account.outcomes(),
        "reasons": [
            {"outcome": end.outcome, "reason": end.reason, "orders": number}
            for end, number in account.ends.most_common()
        ],
        "missing": [str(line) for line in account.missing],
        "twice": [str(line) for line in account.twice],
        "seconds": round(seconds, 2),
    }
