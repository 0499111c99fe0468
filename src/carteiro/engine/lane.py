"""How one subscription runs: what is fetched for it, what is being handled, how much room there is.

A lane *holds* a delivery from its fetch until it is settled. Held deliveries wait in a buffer for a *slot*: one of up
to `concurrency` long-lived tasks that serve the buffer. Slots are started when there is work for them and kept; each
wakes the next only while something waits, so handlers that never await are run by one slot in one go. How a slot serves
the buffer, message by message or in batches, is given to the lane.

Room is what the intake may fetch: capacity + prefetch, less what is held. That is all there is of backpressure.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Final

from carteiro.current import current
from carteiro.engine.attempt import Handle
from carteiro.engine.failures import describe
from carteiro.message import Action, Delivery, Failure, Outcome, Subscription
from carteiro.ports.clock import Clock

log = logging.getLogger("carteiro.worker")

ACK: Final = Action.ACK
RELEASE: Final = Action.RELEASE

TURN: Final = 0.002
"""Seconds for which a lane's slots may go on, all together, without letting the event loop breathe."""

AHEAD: Final = 0.1
"""An adaptive prefetch holds what is handled in so many seconds, at most MOST_AHEAD messages."""

MOST_AHEAD: Final = 4000

MOST_AT_ONCE: Final = 1000
"""A fetch takes no more: so the next is claimed while this one is handled."""


class Lane:
    """One subscription at work.

    `capacity` is how many deliveries all slots together can take at once; `prefetch=None` adapts to the pace of
    handling; `attempts` is how many the handlers behind it permit; `serve` takes from `buffer`, handles, settles, and
    returns False when it found nothing to do.
    """

    def __init__(
        self,
        subscription: Subscription,
        serve: Callable[[Lane], Awaitable[bool]],
        *,
        concurrency: int,
        capacity: int,
        prefetch: int | None,
        attempts: int,
        clock: Clock,
        settle: Callable[[Outcome], None],
    ) -> None:
        self.subscription = subscription
        self.attempts = attempts
        self.clock = clock
        self._settle = settle
        self._leaving = 0
        """How many have an outcome that is not settled yet."""
        self.buffer: deque[Delivery] = deque()
        self.held: dict[Delivery, float] = {}
        """Each held delivery, and when its lease was last begun or renewed (monotonic), in the order of that time."""
        self.doubtful: set[Delivery] = set()
        """Those that a settle without an answer may have ended."""
        self.handled = 0
        self.handled_at: float | None = None
        """When the last of them was settled (monotonic)."""
        self.fed_at = clock.monotonic()
        """When something came last, or began to be waited for."""
        self.last_failure: Failure | None = None
        """How the last attempt failed that did."""
        self.stopping = False
        self.hungry: Callable[[], None] = lambda: None
        """Called when there is room again."""
        self._serve = serve
        self._concurrency = concurrency
        self._capacity = capacity
        self._adaptive = prefetch is None
        self._prefetch = prefetch or 0
        self._pace = 0.0
        self._paced_at, self._paced_handled = clock.monotonic(), 0
        self._slots: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self.waking = False
        """Whether a slot is on its way to the buffer."""
        self._turn_ends: float | None = None
        """When the slots will have held the loop long enough, since it went round last (`perf_counter`)."""
        self._resting = False
        """Whether a slot goes on when the loop has been round, and finds what others would."""
        self._wanting: asyncio.Future[None] | None = None

    def __str__(self) -> str:
        return str(self.subscription)

    @property
    def running(self) -> int:
        """How many deliveries are being handled, or are handled and not settled yet."""
        return len(self.held) - len(self.buffer)

    @property
    def busy(self) -> int:
        """How many deliveries are on their way, unless a slot waits for more of them to come."""
        return 0 if self._wanting is not None and self._concurrency == 1 else len(self.held)

    @property
    def idle_since(self) -> float:
        """When something was last seen to come or to be done with (monotonic)."""
        return self.fed_at if self.handled_at is None else max(self.fed_at, self.handled_at)

    # -- what the intake, the settler and the leases do with it ----------------------------------------------------

    def room(self) -> int:
        """How many deliveries may be fetched now.

        A prefetch that adapts has as much room again for what is handled and not settled yet: that is nobody's to take.
        Without, it would shrink with the pace, and the pace with it, once a settle takes as long as it is ahead.
        """
        leaving = min(self._leaving, self._prefetch) if self._adaptive else 0
        return min(MOST_AT_ONCE, self._capacity + self._prefetch - (len(self.held) - leaving))

    def put(self, deliveries: Sequence[Delivery]) -> None:
        """Take what was fetched."""
        self.fed_at = now = self.clock.monotonic()
        held = self.held
        for delivery in deliveries:
            held[delivery] = now
        self.buffer.extend(deliveries)
        self.wake()

    def settle(self, outcome: Outcome) -> None:
        self._leaving += 1
        self._settle(outcome)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """The broker has them; their room is free."""
        held, handled = self.held, 0
        self._leaving -= len(outcomes)
        for outcome in outcomes:
            held.pop(outcome.delivery, None)
            if outcome.action is ACK:
                handled += 1
            elif outcome.action is not RELEASE:
                handled += 1
                self.last_failure = outcome.failure
        if handled:
            self.handled += handled
            self.handled_at = self.clock.monotonic()
        if self.doubtful:
            self.doubtful.difference_update(outcome.delivery for outcome in outcomes)
        if not self.buffer or self.room() * 4 >= min(self._prefetch, MOST_AT_ONCE):
            self.hungry()

    def adapt(self) -> None:
        """Set the prefetch by the pace since the last call: a slow handler hoards nothing, a fast one never waits."""
        now = self.clock.monotonic()
        elapsed = now - self._paced_at
        if not self._adaptive or elapsed < 0.001:
            return
        pace = (self.handled - self._paced_handled) / elapsed
        self._pace = (self._pace + pace) / 2
        self._paced_at, self._paced_handled = now, self.handled
        self._prefetch = min(MOST_AHEAD, int(self._pace * AHEAD))

    def lost(self, delivery: Delivery) -> bool:
        """The broker knows its lease no more: what has not started will not. True if it may have been settled."""
        held = self.held.pop(delivery, None) is not None
        if delivery in self.doubtful:
            return True
        if held:
            log.warning("%s lost the lease of %s: another worker has it now", self, delivery.message.id)
        return False

    def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Release buffered deliveries for others to take; they count as no attempt."""
        gone = set(deliveries)
        self.buffer = deque(delivery for delivery in self.buffer if delivery not in gone)
        for delivery in deliveries:
            if delivery in self.held:
                self.settle(Outcome(delivery, RELEASE))

    # -- its end ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Start nothing more, and hand back what waits."""
        self.stopping = True
        self.hand_back(list(self.buffer))
        for waiter in (*self._idle, self._wanting):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self._idle.clear()

    async def finish(self) -> None:
        """Return when what runs has ended."""
        if self._slots:
            await asyncio.wait(self._slots)

    def cancel(self) -> None:
        """Interrupt what runs."""
        for slot in self._slots:
            slot.cancel()

    # -- its slots -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """See that one more slot looks at the buffer, unless one is on its way already."""
        if self.waking or self.stopping or not self.buffer:
            return
        if self._wanting is not None:
            if not self._wanting.done():
                self._wanting.set_result(None)
            return
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                self.waking = True
                waiter.set_result(None)
                return
        if len(self._slots) < self._concurrency:
            self.waking = True
            slot = asyncio.get_running_loop().create_task(self._slot(), name=f"carteiro slot {self}")
            self._slots.add(slot)
            slot.add_done_callback(self._slots.discard)

    @property
    def gathering(self) -> bool:
        """Whether a slot waits for `more`."""
        return self._wanting is not None

    async def more(self, seconds: float) -> None:
        """Wait, as the slot that has the first claim to what comes, until something does or the time is over."""
        self._wanting = asyncio.get_running_loop().create_future()
        timer = asyncio.ensure_future(self.clock.sleep(seconds))
        try:
            await asyncio.wait((timer, self._wanting), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            _forgive()  # it ends the wait and no more: what the slot has gathered is not to be lost with it
        finally:
            timer.cancel()
            self._wanting = None

    async def _slot(self) -> None:
        while not self.stopping:
            self.waking = False
            try:
                await self._turn()
            except asyncio.CancelledError:
                if self.stopping:
                    raise
                _forgive()  # a handler's late cancel: it must not cost the lane a slot

    async def _turn(self) -> None:
        """Serve for a while, or wait for something to serve; of slots that could go on one does, and wakes others."""
        if not self._resting and await self._serve(self) and (self.stopping or not self._resting):
            self._resting = True
            try:
                await asyncio.sleep(0)  # noqa: TID251 (no time passes: others get their turn)
            finally:
                self._resting = False
            return
        waiter = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        await waiter

    def tired(self) -> bool:
        """Whether the slots have held the loop for a turn. With one of each, it went round once in 0.1 s."""
        now = perf_counter()
        if self._turn_ends is None:
            self._turn_ends = now + TURN
            asyncio.get_running_loop().call_soon(self._went_round)
        return now > self._turn_ends

    def _went_round(self) -> None:
        self._turn_ends = None


def one_by_one(handle: Handle) -> Callable[[Lane], Awaitable[bool]]:
    """Serve a lane message by message."""

    async def serve(lane: Lane) -> bool:
        held, settle, here = lane.held, lane.settle, current.set
        while lane.buffer:
            delivery = lane.buffer.popleft()
            if delivery not in held:
                continue
            if not lane.waking:
                lane.wake()
            here(delivery)
            try:
                outcome = await handle(delivery)
            except BaseException as error:
                outcome = interrupted(lane, delivery, error)
            settle(outcome)
            if lane.stopping or lane.tired():
                return True
        return False

    return serve


def interrupted(lane: Lane, delivery: Delivery, error: BaseException) -> Outcome:
    """An attempt that could not even fail properly: stopped in between, or by a fault of the engine's own.

    Raises the KeyboardInterrupt of someone who runs without signal handlers: the process is to end.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    if lane.stopping and isinstance(error, asyncio.CancelledError):
        return Outcome(delivery, RELEASE)
    log.error("%s could not be handled", delivery.message.id, exc_info=error)
    failure = Failure(delivery.message.attempt, lane.clock.time(), describe(error))
    return Outcome(delivery, Action.RETRY, delay=1.0, failure=failure)


def _forgive() -> None:
    """Let the current task go on after a cancel that was not meant for it."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
