"""Where a contestant's packages are.

The peers' libraries exclude one another (ARQ needs redis-py below 6, SAQ below 8, Taskiq from 8 on), so each that needs
one has an environment of its own under `.bench/`, made when it is first asked for and again when its packages change.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks.processes import ROOT, Failed
from benchmarks.systems.base import Contestant

FOLDER = ROOT / ".bench"


def program(contestant: Contestant | None, name: str) -> str:
    """Where the contestant's `name` is: `python`, or a script that a package brought. None: in our own environment."""
    if contestant is None or not contestant.requires:
        return str(Path(sys.executable).parent / name)
    return str(_folder(contestant) / "bin" / name)


def installed(contestant: Contestant) -> bool:
    stamp = _folder(contestant) / "installed"
    return not contestant.requires or (stamp.exists() and stamp.read_text() == _wanted(contestant))


def install(contestant: Contestant, say: Callable[[str], None]) -> None:
    """Make its environment, unless it is there. Raises Failed with what pip said."""
    if installed(contestant):
        return
    say(f"installing {contestant.name}")
    folder = _folder(contestant)
    venv.create(folder, with_pip=True, clear=True)
    command = [program(contestant, "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *_wanted(contestant).split()], capture_output=True, text=True)
    if done.returncode:
        raise Failed(
            f"{contestant.name} could not be installed into {folder}; --installed leaves out who is not there\n"
            f"{done.stderr.strip()[-1000:]}"
        )
    (folder / "installed").write_text(_wanted(contestant))


def _folder(contestant: Contestant) -> Path:
    return FOLDER / (contestant.environment or contestant.module)


def _wanted(contestant: Contestant) -> str:
    """Its packages, and what all of them decode with, read replies with and run on, in our own versions."""
    common = [f"{name}=={version(name)}" for name in ("hiredis", "pydantic", "uvloop")]
    return "\n".join([*contestant.requires, *common])
