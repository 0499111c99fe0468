"""How many messages one process publishes a second, each as safe as its system makes it when its call returns."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import msgspec

from benchmarks.bench import Bench, Figure, Result, rates
from benchmarks.contest import publish
from benchmarks.contestants.publishing import BULK, CONCURRENT
from benchmarks.measurements.handled import against_peers, of
from benchmarks.pace import Pace
from benchmarks.systems.base import Contestant, Role

MODES = {
    "one": "one by one",
    "blocking": "one by one, the loop blocked",
    "concurrent": f"{CONCURRENT} at once",
    "many": "in bulk",
}

SECONDS = 0.75
"""How long each is measured, roughly."""


def measure(bench: Bench) -> Result:
    calls: dict[str, dict[str, Callable[[], Pace]]] = {
        mode: {
            one.name: functools.partial(published, bench, one, mode)
            for one in bench.contestants
            if mode in one.publishes
        }
        for mode in MODES
    }
    flat = {f"{MODES[mode]}: {name}": call for mode, some in calls.items() for name, call in some.items()}
    paces = bench.in_turns(flat)
    ours, bare = bench.one(Role.OURS).name, bench.one(Role.BARE).name
    bounds = bench.system.bounds
    figures: list[Figure] = []
    for mode, peers_at_least, bare_at_least in (
        ("one", None, bounds.one_over_bare),
        ("concurrent", None, None),
        ("many", bounds.bulk_over_peer, None),
    ):
        some = {name: paces[f"{MODES[mode]}: {name}"] for name in calls[mode]}
        found = [
            Figure("carteiro / bare loop", of(some, ours, bare), at_least=bare_at_least),
            *against_peers(bench, some, ours, peers_at_least),
        ]
        figures += [msgspec.structs.replace(figure, name=f"{MODES[mode]}, {figure.name}") for figure in found]
    return Result(
        "Messages published a second, to one group",
        f"{bench.system.safety} One by one each is awaited before the next; of a library that blocks, each blocks. In "
        f"bulk it is {BULK:,} with one call, or what each has in its place. {CONCURRENT} tasks at once share "
        "carteiro's batches.",
        ("", "published/s, median", "best round", "CPU a message"),
        [
            [name, *rates([pace.rate for pace in some]), f"{statistics.median(pace.cpu for pace in some):,.1f} µs"]
            for name, some in paces.items()
        ],
        figures,
        msgspec.to_builtins(paces),
    )


def published(bench: Bench, contestant: Contestant, mode: str) -> Pace:
    """Of one process that publishes as `contestants/publishing.py` says of the mode."""
    count = -(-bench.size(contestant.publishes[mode] * SECONDS) // CONCURRENT) * CONCURRENT
    with bench.system.fresh() as url:
        told = publish(contestant, url, mode, count)
    return Pace(told["published"] / told["seconds"], told["cpu"] / told["published"] * 1e6)
