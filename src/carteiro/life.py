"""Where an app's work stands, between its start and its end: its health goes by it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal

from carteiro.engine.crew import Crew
from carteiro.engine.worker import Worker
from carteiro.errors import ConfigurationError

Phase = Literal["idle", "starting", "consuming", "stopping", "stopped", "dead"]


class Life:
    """Of one app in one process. `idle` has not been asked to consume, as where it only publishes."""

    def __init__(self, app: str) -> None:
        self.phase: Phase = "idle"
        self.death: BaseException | None = None
        """What it died of; None unless it is dead."""
        self._app = app
        self._crew: Crew | None = None

    @property
    def workers(self) -> Mapping[str, Worker]:
        """By broker: those that consume or, once it has ended, that did so last."""
        return {} if self._crew is None else self._crew.workers

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """From the first step to the last of one `run`. Raises ConfigurationError within another."""
        if self.phase in ("starting", "consuming", "stopping"):
            raise ConfigurationError(f"app `{self._app}` is running already in this process")
        self.phase, self.death = "starting", None
        try:
            yield
        except asyncio.CancelledError:
            self.phase = "stopped"
            raise
        except BaseException as error:
            self.phase, self.death = "dead", error
            raise
        self.phase = "stopped"

    @contextlib.contextmanager
    def consuming(self, crew: Crew) -> Iterator[None]:
        self._crew, self.phase = crew, "consuming"
        try:
            yield
        finally:
            self.phase = "stopping"
