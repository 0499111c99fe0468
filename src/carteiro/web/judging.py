"""From what is seen of an app to what its health is.

A broker is `down` if it cannot be reached, and what is published to it is lost to its caller; with an outbox it is
`degraded`. An app is `down` if it can do none of its work: none of its brokers can, or its worker is not there. All
else that is not well is `degraded`, and a service that is degraded is worth asking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from carteiro.app import Carteiro
from carteiro.connection import Connection
from carteiro.durations import shown
from carteiro.engine.failures import describe
from carteiro.engine.lane import Lane
from carteiro.engine.worker import Worker
from carteiro.errors import NotConnected
from carteiro.life import Life
from carteiro.message import Failure, Subscription
from carteiro.policies.breaker import BreakerStatus
from carteiro.ports.broker import GroupStatus
from carteiro.topics import matches
from carteiro.web.models import (
    BreakerHealth,
    BrokerHealth,
    Depth,
    Health,
    LastError,
    OutboxHealth,
    Probe,
    QueueHealth,
    Status,
)
from carteiro.web.watch import Sight, Watch

if TYPE_CHECKING:
    from carteiro.engine.outbox_file import OutboxStatus

LONGEST: Final = 500
"""Characters of an error's text that are shown."""

_PASSWORD: Final = re.compile(r"(\w://[^\s:/@]*):\S*@")
_SECRET: Final = re.compile(r"(?i)((?:password|passwd|pwd|secret|token|api_?key)[\"']?\s*[=:]\s*)[^\s,;&)}\]]+")


def not_at_work(life: Life) -> str | None:
    """Why an app that is to consume does not, if that is so."""
    match life.phase:
        case "idle" | "consuming":
            return None
        case "dead":
            assert life.death is not None
            return f"the worker has died: {_safe(describe(life.death))}"
        case "starting":
            return "the worker is starting"
        case "stopping":
            return "the worker is stopping"
        case "stopped":
            return "the worker was stopped"


def alive(life: Life) -> Probe:
    """Whether the process can go on as it is. A worker that died by itself is not started again by anyone else."""
    if life.phase == "dead":
        return Probe(status="down", reasons=[str(not_at_work(life))])
    return Probe(status="up", reasons=[])


def unseen(app: Carteiro, error: NotConnected) -> Health:
    """Before it is connected, and after it was closed."""
    return Health(app=app.name, status="down", reasons=[not_at_work(app.life) or str(error)], brokers=[], queues=[])


def judged(app: Carteiro, watch: Watch, sights: Mapping[str, Sight], stuck_after: float) -> Health:
    """`stuck_after`: seconds for which messages may wait while there is room for them."""
    brokers: list[BrokerHealth] = []
    queues: list[QueueHealth] = []
    reasons: list[str] = []
    for name, sight in sights.items():
        judge = _Judge(app, name, sight, watch, stuck_after)
        brokers.append(judge.broker())
        queues += judge.queues()
        reasons += [f"broker `{name}`: {reason}" for reason in brokers[-1].reasons] + judge.own_reasons
    idle = not_at_work(app.life)
    if idle is not None:
        reasons.insert(0, idle)
    status: Status = "degraded" if reasons else "up"
    if idle is not None or all(one.status == "down" for one in brokers):
        status = "down"
    return Health(app=app.name, status=status, reasons=reasons, brokers=brokers, queues=queues)


class _Judge:
    """One broker and its queues."""

    def __init__(self, app: Carteiro, name: str, sight: Sight, watch: Watch, stuck_after: float) -> None:
        self._app = app
        self._name = name
        self._sight = sight
        self._watch = watch
        self._stuck_after = stuck_after
        self._connection: Connection = app.connections[name]
        self._system = self._connection.broker.features.backend
        self._worker: Worker | None = app.life.workers.get(name)
        self._at_work = self._worker is not None and app.life.phase == "consuming"
        self._trouble = self._worker.trouble if self._worker is not None and self._at_work else None
        self._breaker = self._connection.publisher.breaker
        self._has_outbox = sight.outbox is not None
        self.own_reasons: list[str] = []
        """Those of single queues."""

    # -- the broker ------------------------------------------------------------------------------------------------

    def broker(self) -> BrokerHealth:
        reasons = list(self._reasons())
        status: Status = "degraded" if reasons else "up"
        if self._away and not self._has_outbox:
            status = "down"
        outbox, answered = self._sight.outbox, self._watch.observers[self._name].answered
        return BrokerHealth(
            name=self._name,
            system=self._system,
            status=status,
            reasons=reasons,
            seen_at=None if answered is None else _when(answered),
            trouble=None if self._trouble is None else _safe(self._trouble),
            breaker=None if self._breaker is None else _breaker(self._breaker),
            outbox=None if outbox is None else _outbox(outbox),
        )

    @property
    def _away(self) -> bool:
        """A worker that gets its messages knows better: RabbitMQ that is short of memory answers nobody else."""
        return self._sight.away is not None and not (self._at_work and self._trouble is None)

    def _reasons(self) -> Iterator[str]:
        away, outbox = self._sight.away, self._sight.outbox
        if away is not None:
            yield f"it cannot be reached: {_safe(away)}"
        elif self._trouble is not None:
            yield _no_messages(self._trouble)
        if self._sight.blind is not None:
            yield _safe(self._sight.blind)
        if self._breaker is not None and self._breaker.state != "closed":
            yield f"publishing is cut off since {_when(self._breaker.since):%Y-%m-%d %H:%M:%S} UTC"
        if outbox is not None and outbox.waiting:
            age = "" if outbox.oldest is None else f", the oldest for {shown(outbox.oldest)}"
            yield f"messages wait in the outbox ({outbox.waiting}{age})"
        if outbox is not None and outbox.refused:
            yield f"the broker refused messages of the outbox ({outbox.refused}): the log says why"
        if self._sight.outbox_trouble is not None:
            yield f"the outbox cannot be read: {_safe(self._sight.outbox_trouble)}"

    # -- its queues ------------------------------------------------------------------------------------------------

    def queues(self) -> list[QueueHealth]:
        """Those that the app subscribes to, and those of its file that it publishes to."""
        lanes = {} if self._worker is None else self._worker.lanes
        declared = self._app.declared(self._name)
        found = [
            self._consumed(one, lanes[one]) if one in lanes else self._published(one.topic, one.group)
            for one in declared
            if one in lanes or not one.ephemeral
        ]
        theirs: dict[tuple[str, str | None], None] = {}
        for topic in self._topics_of_the_file():
            others = [one for one in self._sight.groups or () if matches(one[0], topic)]
            theirs.update(dict.fromkeys(others))
            if not others and not any(matches(one.topic, topic) for one in declared):
                theirs[topic, None] = None
        return found + [
            self._published(topic, group)
            for topic, group in theirs
            if group is None or Subscription(topic, group) not in declared
        ]

    def _topics_of_the_file(self) -> list[str]:
        queues = self._app.queues
        return [] if queues is None else [one.name for one in queues.queues.values() if one.broker == self._name]

    def _consumed(self, subscription: Subscription, lane: Lane) -> QueueHealth:
        counts = self._counts(subscription.topic, subscription.group)
        waits = self._watch.starving(self._name, subscription, None if counts is None else counts.waiting)
        status: Status = "up"
        reasons: list[str] = []
        if (idle := not_at_work(self._app.life)) is not None:
            status, reasons = "down", [idle]
        elif self._away:
            status, reasons = "down", ["the broker cannot be reached"]
        elif self._trouble is not None:
            status, reasons = "degraded", [_no_messages(self._trouble)]
        elif (unclear := self._sight.away or self._sight.blind) is not None:
            status, reasons = "degraded", [f"nobody knows what waits: {_safe(unclear)}"]
        elif counts is not None and waits >= self._stuck_after:
            said = f"stuck: messages wait ({counts.waiting}), and for {shown(waits)} none came in, though there is room"
            status, reasons = "degraded", [said]
            self.own_reasons.append(f"{subscription}: {said}")
        handled = None if lane.handled_at is None else self._ago(lane.handled_at)
        return self._queue(
            subscription.topic, subscription.group, counts, status, reasons, handling=len(lane.held),
            handled=lane.handled, last_handled=handled, last_error=_last_error(lane.last_failure),
        )  # fmt: skip

    def _published(self, topic: str, group: str | None) -> QueueHealth:
        """What others handle, as far as this app publishes to it."""
        counts = None if group is None else self._counts(topic, group)
        status: Status = "up"
        reasons: list[str] = []
        cut_off = self._breaker is not None and self._breaker.state != "closed"
        if self._sight.away is not None or cut_off:
            status, reasons = "down", ["publishing is cut off" if cut_off else "the broker cannot be reached"]
            if self._has_outbox:
                status, reasons = "degraded", [f"{reasons[0]}: what is published is kept in the outbox"]
        elif group is None and self._sight.groups is not None:
            said = "no group gets what is published to it: start a service that subscribes"
            status, reasons = "degraded", [said]
            self.own_reasons.append(f"{topic}: {said}")
        return self._queue(topic, group, counts, status, reasons)

    def _queue(
        self, topic: str, group: str | None, counts: GroupStatus | None, status: Status, reasons: list[str], *,
        handling: int | None = None, handled: int | None = None, last_handled: datetime | None = None,
        last_error: LastError | None = None,
    ) -> QueueHealth:  # fmt: skip
        return QueueHealth(
            topic=topic,
            group=group,
            broker=self._name,
            system=self._system,
            status=status,
            reasons=reasons,
            consumes=handling is not None,
            depth=_depth(counts),
            consumers=None if counts is None else counts.consumers,
            oldest=None if counts is None else _age(counts.oldest),
            handling=handling,
            handled=handled,
            last_handled=last_handled,
            last_error=last_error,
        )

    def _counts(self, topic: str, group: str) -> GroupStatus | None:
        return None if self._sight.groups is None else self._sight.groups.get((topic, group))

    def _ago(self, monotonic: float) -> datetime:
        clock = self._app.clock
        return _when(clock.time() - (clock.monotonic() - monotonic))


def _depth(counts: GroupStatus | None) -> Depth:
    if counts is None:
        return Depth()
    return Depth(
        waiting=counts.waiting, delayed=counts.delayed, retrying=counts.retrying, in_flight=counts.in_flight,
        dead=counts.dead,
    )  # fmt: skip


def _last_error(failure: Failure | None) -> LastError | None:
    if failure is None:
        return None
    type, _, text = failure.error.partition(": ")
    return LastError(type=type, text=_safe(text), attempt=failure.attempt, at=_when(failure.at))


def _breaker(status: BreakerStatus) -> BreakerHealth:
    return BreakerHealth(
        state=status.state,
        since=_when(status.since),
        failures=status.failures,
        last_error=None if status.last_error is None else _safe(status.last_error),
        last_error_at=None if status.last_error_at is None else _when(status.last_error_at),
        next_try=None if status.next_try is None else _when(status.next_try),
    )


def _no_messages(trouble: str) -> str:
    return f"no messages come in, and the worker goes on trying; the last error: {_safe(trouble)}"


def _outbox(status: OutboxStatus) -> OutboxHealth:
    return OutboxHealth(waiting=status.waiting, oldest=_age(status.oldest), refused=status.refused)


def _age(seconds: float | None) -> float | None:
    """To the millisecond; a clock that went back makes nothing younger than now."""
    return None if seconds is None else max(0.0, round(seconds, 3))


def _when(time: float) -> datetime:
    return datetime.fromtimestamp(time, UTC)


def _safe(text: str) -> str:
    """An error's text as it may be shown: what a URL or a setting in it has for a password is left out."""
    text = _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
