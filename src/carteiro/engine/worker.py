"""A worker: everything that moves messages between one broker and the handlers of one process.

    intake -> lanes -> attempts -> settler        leases renew what the lanes hold

It runs until `stop`, which goes in this order: fetch nothing more, hand back what has not started, give what runs its
grace, interrupt the rest (an interrupted attempt is not counted), settle all of it, close.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from carteiro.engine.attempt import Attempt, Handle, by_type
from carteiro.engine.batches import BatchAttempt, in_batches
from carteiro.engine.dropping import Dropper
from carteiro.engine.endings import Surroundings
from carteiro.engine.forwarder import Forward
from carteiro.engine.intake import Intake
from carteiro.engine.lane import Lane, one_by_one
from carteiro.engine.leases import Leases
from carteiro.engine.once import Once
from carteiro.engine.quarantine import Quarantine
from carteiro.engine.reprocessing import Reprocessing
from carteiro.engine.routes import Handler, Route
from carteiro.engine.settler import Settler
from carteiro.errors import ConfigurationError
from carteiro.message import Outcome, Subscription
from carteiro.policies.rate import RateLimiter
from carteiro.ports.broker import Broker

log = logging.getLogger("carteiro.worker")

LAST_WORDS: Final = 5.0
"""Seconds for handlers that were interrupted to end."""


class Worker:
    """Runs routes on a broker that is connected and on which their subscriptions are declared.

    `name` is the app's for it; `forward` publishes to each of the app's brokers, by name.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        routes: Sequence[Route],
        around: Surroundings,
        forward: Mapping[str, Forward],
    ) -> None:
        self.routes = tuple(routes)
        self._around = around
        self._consumer = broker.consume([route.subscription for route in routes])
        apart = None if around.store is broker.store else around.store
        self._settler = Settler(self._consumer, name, forward, apart, around.clock)
        self._droppers: list[Dropper] = []
        self.lanes: dict[Subscription, Lane] = {route.subscription: self._lane(route) for route in routes}
        self._settler.lanes = self.lanes
        around.waiting = lambda subscription: self.lanes[subscription].buffer
        self._leases = Leases(self._consumer, self.lanes.values(), around.clock)
        self._intake = Intake(
            self._consumer, self.lanes, _limits(routes, around), Quarantine(self._consumer), self._leases.begin,
            around.clock,
        )  # fmt: skip
        self._reprocessing: Reprocessing | None = None
        if any(route.reprocess is not None for route in routes):
            self._reprocessing = Reprocessing(routes, broker, around.store, around.clock)
        self._tasks: list[asyncio.Task[None]] = []
        self._killed = False
        self._stop_requested = asyncio.Event()
        self._patience: asyncio.Future[None] | None = None
        self._hurried = False

    @property
    def trouble(self) -> str | None:
        """Why nothing comes in, while that is so."""
        return self._intake.trouble

    @property
    def busy(self) -> int:
        """How many deliveries are on their way, those aside that wait for a batch to fill."""
        return sum(lane.busy for lane in self.lanes.values())

    @property
    def handled(self) -> int:
        return sum(lane.handled for lane in self.lanes.values())

    @property
    def dropped(self) -> int:
        """How many messages have failed for good where no dead letters are kept."""
        return sum(dropper.count for dropper in self._droppers)

    def starved(self, subscription: Subscription) -> float | None:
        """Seconds for which nothing has come in for it though there is room; None where there is none for now."""
        if not self._intake.has_room(subscription):
            return None
        return self._around.clock.monotonic() - self.lanes[subscription].idle_since

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._intake.run(), name="carteiro intake"),
            asyncio.create_task(self._leases.run(), name="carteiro leases"),
        ]
        if self._reprocessing is not None:
            self._tasks.append(asyncio.create_task(self._reprocessing.run(), name="carteiro reprocessing"))

    async def run_until_stopped(self) -> None:
        """Return after `request_stop`; raise what makes it impossible to go on."""
        stopped = asyncio.ensure_future(self._stop_requested.wait())
        try:
            done, _ = await asyncio.wait((*self._tasks, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        for task in done:
            if task is not stopped:
                task.result()

    def request_stop(self) -> None:
        """Have `run_until_stopped` return; when the stop is under way already, skip the grace."""
        if self._stop_requested.is_set():
            self.hurry()
        self._stop_requested.set()

    async def stop(self, grace: float) -> None:
        """Stop within about `grace` seconds; returns when all is settled and closed. After `kill` it does nothing."""
        if self._killed:
            return
        self._stop_requested.set()
        intake, leases, *reprocessing = self._tasks
        for task in (intake, *reprocessing):
            await _cancel(task)
        self._intake.close()
        self._around.stopping = True
        for lane in self.lanes.values():
            lane.stop()
        await self._finish(grace)
        self._settler.give_up()
        await self._settler.drain()
        await _cancel(leases)
        self._around.deadlines.close()
        await self._consumer.close()

    def kill(self) -> None:
        """Stop at once and settle nothing, as a killed process would."""
        self._killed = True
        self._around.stopping = True
        for task in self._tasks:
            task.cancel()
        self._intake.close()
        self._settler.kill()
        self._around.deadlines.close()
        for lane in self.lanes.values():
            lane.stopping = True
            lane.cancel()

    def hurry(self) -> None:
        """End the grace of a stop that is under way, or have none when it comes to that."""
        self._hurried = True
        if self._patience is not None:
            self._patience.cancel()

    async def _finish(self, grace: float) -> None:
        finished = asyncio.ensure_future(asyncio.gather(*(lane.finish() for lane in self.lanes.values())))
        if not self._hurried:
            await self._wait(finished, grace)
        if not finished.done():
            running = sum(lane.running for lane in self.lanes.values())
            why = "as asked" if self._hurried else f"their grace of {grace:g} s is over"
            log.warning("interrupting what is being handled (%d messages): %s", running, why)
            for lane in self.lanes.values():
                lane.cancel()
            await self._wait(finished, LAST_WORDS)
        if not finished.done():
            for lane in self.lanes.values():
                for delivery in lane.held:
                    log.error("%s of %s does not end, and is left to its lease", delivery.message.id, lane)
            finished.cancel()

    async def _wait(self, finished: asyncio.Future[list[None]], seconds: float) -> None:
        """Until it is finished, the time is over, or someone is in a hurry."""
        self._patience = asyncio.ensure_future(self._around.clock.sleep(seconds))
        await asyncio.wait((finished, self._patience), return_when=asyncio.FIRST_COMPLETED)
        self._patience.cancel()

    def _lane(self, route: Route) -> Lane:
        settle: Callable[[Outcome], None] = self._settler.add
        if not route.dead_letters:
            settle = dropper = Dropper(self._settler)
            self._droppers.append(dropper)
        attempts = min(handler.retry.attempts for handler in route.handlers)
        capacity, serve = route.concurrency, None
        if route.batch is not None:
            capacity *= route.batch.size
            serve = in_batches(BatchAttempt(route.handlers[0], route.subscription, self._around), route.batch)
        return Lane(
            route.subscription,
            serve or one_by_one(self._handle(route)),
            concurrency=route.concurrency,
            capacity=capacity,
            # Only what starts is fetched, where there is no second attempt (what waits in a buffer would die with its
            # worker) and where there is a rate (permits that wait in a buffer would all be used at once later).
            prefetch=0 if attempts == 1 or route.rate is not None else route.prefetch,
            attempts=attempts,
            clock=self._around.clock,
            settle=settle,
        )

    def _handle(self, route: Route) -> Handle:
        attempts = {handler.type: self._attempt(handler, route.subscription) for handler in route.handlers}
        if list(attempts) == [None]:
            return attempts[None]
        return by_type(attempts, route.subscription, self._around)

    def _attempt(self, handler: Handler, subscription: Subscription) -> Handle:
        if handler.attempts is not None:
            return handler.attempts(handler, subscription, self._around)
        attempt = Attempt(handler, subscription, self._around)
        if handler.idempotency is None:
            return attempt
        return Once(attempt, handler.idempotency, subscription, self._around)


def _limits(routes: Sequence[Route], around: Surroundings) -> dict[Subscription, RateLimiter]:
    limits: dict[Subscription, RateLimiter] = {}
    for route in routes:
        if route.rate is None:
            continue
        if around.store is None:
            raise ConfigurationError(f"{route.subscription} needs a store for its rate limit: pass `store=`")
        limits[route.subscription] = RateLimiter(route.rate, str(route.subscription), around.store, around.clock)
    return limits


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
