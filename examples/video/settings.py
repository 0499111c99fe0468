"""What can be set from outside: `VIDEO_PRESET=slow python -m examples.video`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ByteSize


class Settings(BaseModel, frozen=True):
    """Each comes from the environment variable of its name, in capitals, after `VIDEO_`."""

    folder: Path = Path("videos")
    """Where the videos are, a folder each. Web and workers share it."""
    max_size: ByteSize = ByteSize(512 * 1024 * 1024)
    """The largest upload, such as `2GiB`."""
    encoders: int = 2
    """How many sizes one worker encodes at once."""
    preset: str = "veryfast"
    """x264's: the slower, the smaller the file."""
    lease: float = 30.0
    """Seconds after which others do what a killed worker was doing."""

    @classmethod
    def from_environment(cls) -> Settings:
        names = {name: f"VIDEO_{name.upper()}" for name in cls.model_fields}
        return cls.model_validate({name: os.environ[key] for name, key in names.items() if key in os.environ})


settings = Settings.from_environment()
