"""All of the kit in one class, and the settings that a backend may change."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from carteiro.testing.conformance.rig import Rig
from carteiro.testing.conformance.themes.bodies import BodiesConformance
from carteiro.testing.conformance.themes.changes import ChangesConformance
from carteiro.testing.conformance.themes.concurrency import ConcurrencyConformance
from carteiro.testing.conformance.themes.dedupe import DedupeConformance
from carteiro.testing.conformance.themes.delivery import DeliveryConformance
from carteiro.testing.conformance.themes.groups import GroupsConformance
from carteiro.testing.conformance.themes.inspection import InspectionConformance
from carteiro.testing.conformance.themes.joins import JoinsConformance
from carteiro.testing.conformance.themes.leases import LeasesConformance
from carteiro.testing.conformance.themes.ordering import OrderingConformance
from carteiro.testing.conformance.themes.processes import ProcessesConformance
from carteiro.testing.conformance.themes.retention import RetentionConformance
from carteiro.testing.conformance.themes.retries import DeadLettersConformance, DelayConformance, RetriesConformance
from carteiro.testing.conformance.themes.state import StoreConformance


class BackendConformance(
    DeliveryConformance,
    GroupsConformance,
    LeasesConformance,
    DelayConformance,
    RetriesConformance,
    DeadLettersConformance,
    OrderingConformance,
    RetentionConformance,
    DedupeConformance,
    StoreConformance,
    JoinsConformance,
    ChangesConformance,
    InspectionConformance,
    BodiesConformance,
    ConcurrencyConformance,
    ProcessesConformance,
):
    """What a backend must hold. A subclass names its broker in the fixture `backend_url`.

    The URL must lead every handle that a test opens to the same broker. Where the backend rounds its times, set
    `lease` and `delay` (seconds) to the shortest that it tells apart from none; `patience` (seconds) is how long
    anything may take before a test is given up.
    """

    lease = 0.3
    delay = 0.2
    patience = 30.0

    @pytest.fixture
    def backend_url(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `backend_url`: the URL of its broker")

    @pytest_asyncio.fixture
    async def rig(self, backend_url: str) -> AsyncIterator[Rig]:
        rig = Rig(backend_url, lease=self.lease, delay=self.delay, patience=self.patience)
        await rig.connect()
        yield rig
        await rig.close()
