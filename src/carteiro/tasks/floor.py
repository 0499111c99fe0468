"""What runs the tasks of an app in one worker: its bench, and what is shared by the attempts of a queue or a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from carteiro.engine.endings import Surroundings
from carteiro.engine.routes import Handler, MakeAttempts
from carteiro.message import Subscription
from carteiro.tasks.ahead import Ahead
from carteiro.tasks.attempt import Kept, TaskAttempt
from carteiro.tasks.bench import Bench
from carteiro.tasks.events import EventAttempt
from carteiro.tasks.permits import Permits
from carteiro.tasks.queues import LEVELS, queue_of
from carteiro.tasks.seats import Seats
from carteiro.tasks.task import Task


class Floor:
    """For one worker of the app `name`. `lease`, in seconds, is for the permits of limited tasks."""

    def __init__(self, name: str, bench: Bench, kept: Kept, lease: float) -> None:
        self.bench = bench
        self._name = name
        self._kept = kept
        self._lease = lease
        self._permits: dict[str, Sequence[Permits]] = {}
        self._seats: dict[str, Seats] = {}
        self._ahead: dict[Subscription, Ahead] = {}

    def attempts(self, task: Task[..., Any, Any] | None, concurrency: int) -> MakeAttempts:
        """What makes the attempts at `task`, or those of events, on a queue that runs so many at once."""

        def make(handler: Handler, subscription: Subscription, around: Surroundings) -> TaskAttempt | EventAttempt:
            if task is None:
                return EventAttempt(handler, subscription, around, self.bench)
            place = queue_of(self._name, subscription.topic)
            assert place is not None, subscription
            queue, level = place
            seats = self._seats.setdefault(queue, Seats(concurrency, len(LEVELS), self.bench.clock))
            ahead = self._ahead.setdefault(subscription, Ahead(self.bench, lambda: around.waiting(subscription)))
            return TaskAttempt(
                task, handler, subscription, around, seats=seats, level=level, bench=self.bench, ahead=ahead,
                permits=self._permits_of(task), kept=self._kept,
            )  # fmt: skip

        return make

    async def close(self) -> None:
        """Once nothing runs any more."""
        for permits in (one for some in self._permits.values() for one in some):
            await permits.close()
        await self.bench.close()

    def _permits_of(self, task: Task[..., Any, Any]) -> Sequence[Permits]:
        """For each of its limits."""
        if task.name not in self._permits:
            bench = self.bench
            self._permits[task.name] = some = [
                Permits(task.name if number == 0 else f"{task.name}#{number + 1}", limit, bench.store, bench.clock,
                        lease=self._lease)
                for number, limit in enumerate(task.options.limits)
            ]  # fmt: skip
            for permits in some:
                permits.start()
        return self._permits[task.name]
