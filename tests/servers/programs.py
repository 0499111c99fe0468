"""Programs that some tests start, and that are no servers."""

from __future__ import annotations

import shutil

from tests.servers.system import DebianPackage, System


def _program(name: str) -> System:
    return System(
        name=name,
        what=f"`{name}`",
        is_here=lambda: shutil.which(name) is not None,
        hint=f"apt-get install {name}",
        offers=(DebianPackage(name, name),),
    )


FFMPEG = _program("ffmpeg")
CHROMIUM = _program("chromium")
