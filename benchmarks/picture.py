"""What a system's results look like: who handles how many a second, and how long a message is under way."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.bench import Result
from benchmarks.contestants.publishing import RATE
from benchmarks.systems.base import Role, System

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, BARE, THEIRS = "#e4572e", "#7b8794", "#b8c4ce"
INK, FAINT = "#1f2933", "#66717d"
NOTE = "Pydantic bodies and a handler that does nothing. The bare loop is written by hand on the client library."
COLOURS = {Role.OURS: OURS, Role.BARE: BARE, Role.PEER: THEIRS}


class Bar(msgspec.Struct, frozen=True):
    name: str
    value: float
    role: Role


def draw(name: str, system: System, results: Mapping[str, Result], folder: Path) -> str:
    """Make `performance-<name>.png`, and give back the line of Markdown that shows it, with its figures in words."""
    import matplotlib  # half a second, which only this needs

    matplotlib.use("Agg")
    from matplotlib import pyplot

    handled = sorted(_bars(system, results["handled"], "rate"), key=lambda bar: -bar.value)
    latency = sorted(_bars(system, results["latency"], "p50"), key=lambda bar: bar.value)
    tails = {bar.name: bar.value for bar in _bars(system, results["latency"], "p99")}
    rows = len(handled), len(latency)
    style: Any = {"font.size": 10, "text.color": INK, "axes.edgecolor": FAINT, "figure.constrained_layout.h_pad": 0.12}
    with pyplot.rc_context(style):
        height = 2.9 + 0.34 * sum(rows)
        figure, (upper, lower) = pyplot.subplots(
            2, 1, figsize=(9, height), height_ratios=rows, layout="constrained", subplot_kw={"facecolor": "none"}
        )
        figure.get_layout_engine().set(rect=(0.01, 0.0, 0.98, 1 - 0.78 / height))  # type: ignore[call-arg, union-attr]
        figure.text(0.02, 1 - 0.22 / height, f"carteiro on {system.title}", size=15, weight="bold", va="top")
        figure.text(0.02, 1 - 0.54 / height, NOTE, size=9.5, color=FAINT, va="top")
        _rates(upper, handled)
        _times(lower, latency, tails)
        figure.savefig(folder / f"performance-{name}.png", dpi=150, facecolor="white")
        pyplot.close(figure)
    words = ", ".join(f"{bar.name} {bar.value:,.0f}" for bar in handled)
    times = ", ".join(f"{bar.name} {bar.value:,.2f} ms" for bar in latency)
    return f"![Handled a second on {system.title}: {words}. Median latency: {times}.](performance-{name}.png)"


def _bars(system: System, result: Result, field: str) -> list[Bar]:
    """The median of `field` over the rounds, of all whom a picture shows."""
    roles = {one.name: one.role for one in system.contestants}
    return [
        Bar(name, statistics.median(one[field] for one in rounds), roles[name])
        for name, rounds in result.raw.items()
        if roles[name] in COLOURS
    ]


def _rates(axes: Axes, bars: Sequence[Bar]) -> None:
    drawn = axes.barh(range(len(bars)), [bar.value for bar in bars], 0.68, color=[COLOURS[bar.role] for bar in bars])
    axes.bar_label(drawn, [f"{bar.value:,.0f}" for bar in bars], padding=5, size=9)
    axes.set_xlim(0, bars[0].value * 1.12)
    _finish(axes, bars, "Messages handled a second by one worker process", "messages a second; longer is better")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _times(axes: Axes, bars: Sequence[Bar], tails: Mapping[str, float]) -> None:
    """Points and lines: on a logarithmic axis there is no zero for a bar to start from."""
    for row, bar in enumerate(bars):
        tail, colour = tails[bar.name], COLOURS[bar.role]
        axes.plot([bar.value, tail], [row, row], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([bar.value], [row], "o", color=colour, markersize=9)
        text = f"{_milliseconds(bar.value)},  p99 {_milliseconds(tail)}"
        axes.annotate(text, (tail, row), xytext=(9, 0), textcoords="offset points", va="center", size=9)
    axes.set_xscale("log")
    least, most = min(bar.value for bar in bars), max(tails.values())
    axes.set_xlim(least / 2, most * (most / least) ** 0.35)  # with room for the longest label
    _finish(
        axes,
        bars,
        f"From publish to the handler in another process, at {RATE} messages a second",
        "point: median, end of the line: p99; milliseconds, logarithmic; further left is better",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.minorticks_off()


def _finish(axes: Axes, bars: Sequence[Bar], title: str, reading: str) -> None:
    axes.set_title(title, loc="left", size=11, weight="bold", pad=8)
    axes.set_xlabel(reading, color=FAINT, size=9, loc="left")
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    for tick, bar in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_color(OURS if bar.role is Role.OURS else INK)
        tick.set_fontweight("bold" if bar.role is Role.OURS else "normal")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=FAINT, labelsize=8.5)
    axes.grid(axis="x", color="#e8ecef", linewidth=0.8)
    axes.set_axisbelow(True)


def _milliseconds(value: float) -> str:
    return f"{value:,.2f} ms" if value < 10 else f"{value:,.0f} ms"
