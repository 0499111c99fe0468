"""Results as they are printed, as a page holds them, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.bench import Figure, Result

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def marks(system: str) -> tuple[str, str]:
    """Between them is what the benchmarks print for a system."""
    return f"<!-- printed by the benchmarks, {system}: begin -->", f"<!-- printed by the benchmarks, {system}: end -->"


def show(console: Console, result: Result) -> None:
    console.print(f"\n[bold]{result.title}[/]")
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for number, column in enumerate(result.columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in result.rows:
        table.add_row(*row)
    console.print(table)
    for figure in result.figures:
        console.print(f"  {figure.name}: [bold]{value(figure)}[/]{bound(figure)}", highlight=False)


def write(system: str, results: Sequence[Result], machine: Mapping[str, str], command: str, picture: str = "") -> None:
    """Put the results between the system's marks on the page; what is around them stays."""
    begin, end = marks(system)
    text = PAGE.read_text("utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n\n{markdown(results, machine, command, picture)}\n{end}{after}", "utf-8")


def markdown(results: Sequence[Result], machine: Mapping[str, str], command: str, picture: str) -> str:
    """`picture` is the line that shows it, if there is one."""
    lines = [picture, ""] if picture else []
    lines += [f"Printed by `{command}`.", "", *_table(("", ""), list(machine.items()))]
    lines += ["", "### Held against DESIGN", ""]
    held = [(result.title, figure) for result in results for figure in result.figures if figure.holds is not None]
    lines += _table(
        ("", "figure", "measured", "bound", ""),
        [(title, figure.name, value(figure), _limit(figure), _mark(figure)) for title, figure in held],
    )
    for result in results:
        lines += ["", f"### {result.title}", "", result.how, "", *_table(result.columns, result.rows), ""]
        lines += [f"- {figure.name}: **{value(figure)}**{bound(figure)}" for figure in result.figures]
    return "\n".join(lines) + "\n"


def value(figure: Figure) -> str:
    digits = 2 if abs(figure.value) < 10 else 1
    return f"{figure.value:,.{digits}f} {figure.unit}"


def bound(figure: Figure) -> str:
    return "" if figure.holds is None else f" ({_limit(figure)}: {_mark(figure)})"


def _limit(figure: Figure) -> str:
    if figure.at_least is not None:
        return f"at least {figure.at_least:g} {figure.unit}"
    return f"at most {figure.at_most:g} {figure.unit}"


def _mark(figure: Figure) -> str:
    return "✓ holds" if figure.holds else "✗ falls short"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    sides = ["---", *["---:"] * (len(columns) - 1)] if len(columns) > 2 else ["---"] * len(columns)
    return [f"| {' | '.join(row)} |" for row in (columns, sides, *rows)]
