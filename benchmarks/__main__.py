"""The command: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import environments, machine, page, picture
from benchmarks.bench import Bench, Result
from benchmarks.measurements import MEASUREMENTS
from benchmarks.processes import Failed
from benchmarks.systems import SYSTEMS
from benchmarks.systems.base import Contestant, Role, System


def main() -> None:
    parser, options = _options()
    measured = _some(parser, "measurement", options.only, list(MEASUREMENTS))
    systems = _some(parser, "system", options.system, list(SYSTEMS))
    if options.write and (options.only or options.peers or options.installed or options.quick):
        parser.error("--write is for a whole run: without --only, --peers, --installed and --quick")
    console = Console(width=None if sys.stdout.isatty() else 120)
    raw: dict[str, Any] = {}
    for name in systems:
        try:
            with SYSTEMS[name]() as system:
                described = machine.describe(system)
                here = [one for one in system.measurements if one in measured]
                results = _run(system, _field(parser, system, options), here, options, console)
        except Failed as error:
            sys.exit(f"{name}: {error}")
        raw[name] = {"machine": described} | {
            one: {"figures": {figure.name: figure.value for figure in result.figures}, "rounds": result.raw}
            for one, result in results.items()
        }
        if options.write:
            shown = picture.draw(name, system, results, page.PAGE.parent) if "handled" in results else ""
            command = " ".join(["python -m benchmarks", *sys.argv[1:]])
            page.write(name, list(results.values()), described, command, shown)
    if options.json:
        options.json.write_text(json.dumps(raw, indent=2))


def _options() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Carteiro, a bare loop and peers, side by side on one system."
    )
    parser.add_argument("--system", metavar="NAME,…", help=f"some of: {', '.join(SYSTEMS)} (all)")
    parser.add_argument("--quick", action="store_true", help="one round of a fifth: rough")
    parser.add_argument("--rounds", type=int, help="how often each contestant has its turn (3)")
    parser.add_argument("--only", metavar="NAME,…", help=f"some of: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--peers", metavar="NAME,…", help="only these beside carteiro and the bare loop")
    parser.add_argument("--installed", action="store_true", help="leave out peers that are not installed yet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's numbers there")
    parser.add_argument("--write", action="store_true", help="put the results into docs/performance.md")
    return parser, parser.parse_args()


def _some(parser: argparse.ArgumentParser, what: str, asked: str | None, all: Sequence[str]) -> Sequence[str]:
    names = asked.split(",") if asked else all
    if unknown := [name for name in names if name not in all]:
        parser.error(f"no {what} is called {', '.join(unknown)}: there are {', '.join(all)}")
    return names


def _field(parser: argparse.ArgumentParser, system: System, options: argparse.Namespace) -> list[Contestant]:
    """Who takes part. What they need is installed."""
    peers = [one.name for one in system.contestants if one.role is Role.PEER]
    wanted = _some(parser, "peer", options.peers, peers)
    field = [one for one in system.contestants if one.role is not Role.PEER or one.name in wanted]
    if options.installed:
        return [one for one in field if environments.installed(one)]
    with Console(stderr=True).status("") as status:
        for one in field:
            environments.install(one, status.update)
    return field


def _run(
    system: System, field: Sequence[Contestant], names: Sequence[str], options: argparse.Namespace, console: Console
) -> dict[str, Result]:
    console.print(f"\n[bold]{system.title}[/]")
    results: dict[str, Result] = {}
    for name in names:
        with Console(stderr=True).status(name) as status:
            bench = Bench(system, field, quick=options.quick, rounds=options.rounds, say=status.update)
            results[name] = MEASUREMENTS[name](bench)
        page.show(console, results[name])
    return results


if __name__ == "__main__":
    main()
