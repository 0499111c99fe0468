"""The command: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import machine, page
from benchmarks.bench import Bench, Result
from benchmarks.measurements import MEASUREMENTS
from benchmarks.processes import Failed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Carteiro on SQLite, a bare loop and Huey, side by side."
    )
    parser.add_argument("--quick", action="store_true", help="one round of a fifth: under a minute, and rough")
    parser.add_argument("--rounds", type=int, help="how often each contestant has its turn (3)")
    parser.add_argument("--only", metavar="NAME,…", help=f"some of: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's numbers there")
    parser.add_argument("--write", action="store_true", help="put the results into docs/performance.md")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(MEASUREMENTS)
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        parser.error(f"no measurement is called {', '.join(unknown)}: there are {', '.join(MEASUREMENTS)}")
    if options.write and (options.only or options.quick):
        parser.error("--write is for a whole run: without --only and --quick")

    console = Console(width=None if sys.stdout.isatty() else 120)
    before = machine.describe()
    results: dict[str, Result] = {}
    for name in names:
        with Console(stderr=True).status(name) as status:
            bench = Bench(quick=options.quick, rounds=options.rounds, say=status.update)
            try:
                results[name] = MEASUREMENTS[name](bench)
            except Failed as error:
                sys.exit(f"{name}: {error}")
        page.show(console, results[name])
    if options.json:
        raw = {name: {"figures": {one.name: one.value for one in result.figures}, "rounds": result.raw}
               for name, result in results.items()}  # fmt: skip
        options.json.write_text(json.dumps({"machine": before, "measurements": raw}, indent=2))
    if options.write:
        page.write(list(results.values()), before, " ".join(["python -m benchmarks", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
