"""Contestants as processes: started, listened to, stopped, and what they cost."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE = 30.0
"""Seconds without a word after which a contestant is given up."""
GRACE = 1.0
"""Seconds to stop in: what is left of a contestant's work is thrown away."""

Report = dict[str, Any]


class Failed(Exception):
    """A contestant fell silent or ended; the text holds the end of what it said on stderr."""


class Ended(Failed):
    """All processes have ended."""


class Running:
    """One or several processes that tell what they do through one pipe; leaving it stops them."""

    def __init__(self, *commands: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the processes)
        self._reading, writing = os.pipe()
        self._rest = b""
        self.processes = [
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=writing, stderr=self._errors, cwd=ROOT,
                env=_environment(environment), start_new_session=True,
            )
            for command in commands
        ]  # fmt: skip
        os.close(writing)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.terminate()
        end = time.monotonic() + GRACE
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
        os.close(self._reading)
        self._errors.close()

    def next(self, patience: float = PATIENCE) -> list[Report]:
        """What has been told since; waits for something. Raises Ended, or Failed when nobody says a word."""
        if not select.select([self._reading], [], [], patience)[0]:
            raise Failed(self._account(f"said nothing for {patience:g} s"))
        data = os.read(self._reading, 1 << 16)
        if not data:
            raise Ended(self._account("ended too early"))
        *lines, self._rest = (self._rest + data).split(b"\n")
        # Some libraries greet on stdout.
        told: list[Report] = [json.loads(line) for line in lines if line.startswith(b"{")]
        return told

    def first(self, field: str, patience: float = PATIENCE) -> Report:
        """The first report that has `field`."""
        while True:
            for report in self.next(patience):
                if field in report:
                    return report

    def ready(self) -> None:
        """Return when `carteiro run --json` has said that it consumes."""
        while not any(report.get("event") == "ready" for report in self.next()):
            pass

    def costs(self) -> tuple[float, float]:
        """CPU seconds of all processes and what they have started, and the RSS of the largest, in MB."""
        family = [pid for process in self.processes for pid in _family(process.pid)]
        used = [cost for cost in map(_cost, family) if cost is not None]
        return sum(cpu for cpu, _ in used), max((rss for _, rss in used), default=0.0)

    def _account(self, how: str) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-1000:]
        commands = "; ".join(" ".join(map(str, process.args)) for process in self.processes)  # type: ignore[arg-type]
        return f"{commands} {how}\n{said}"


# -- what a process costs ------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """The CPU time of all its threads so far, to the nanosecond (Linux)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _family(pid: int) -> list[int]:
    """It and its descendants (Linux)."""
    with contextlib.suppress(OSError):
        children = " ".join(one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/children")).split()
        return [pid, *(one for child in children for one in _family(int(child)))]
    return []


def _cost(pid: int) -> tuple[float, float] | None:
    """CPU seconds of its threads and of its ended children, to a hundredth, and RSS in MB; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    cpu = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return cpu, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1_048_576


def memory(pid: int) -> dict[str, float]:
    """RSS and PSS (what is shared counts for its part), in MB of 1,048,576 bytes (Linux)."""
    found: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name.upper()] = int(rest.split()[0]) / 1024
    return found


def seconds_to_run(code: str) -> float:
    """Of a new interpreter that runs `code`."""
    command = [sys.executable, "-c", code]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env=_environment({}), stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@functools.cache
def _bytecode() -> tempfile.TemporaryDirectory[str]:
    """Where contestants keep compiled modules, as an installed package does: some environments write none."""
    return tempfile.TemporaryDirectory(prefix="carteiro-bench-bytecode-")


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": _bytecode().name, **own}
