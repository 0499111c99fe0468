"""Claim, renew, settle: a delivery's life between a worker and the file.

    visible --claim--> leased --ack--> gone
                         |  \\--retry, release--> visible at its time
                         |   \\--dead--> dead letter
                         \\--the lease ends--> visible

A claim moves `visible_at` to the lease's end, adds one to `attempt` and stamps the row with the claim's number, which
no other claim ever had: the *fence*. Renew and settle name (row, number) and act only where the row still bears that
number; a retry and a release erase it. So a worker that slept through its lease can settle nothing that someone else
has taken since, and nobody can settle twice. A worker that dies leaves the lease to end by itself.

An outcome is applied whole or not at all: its fence and the versions that its writes expect are looked at first, in
the one transaction in which it is then settled, its writes stored, and its emits and dead letter published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from carteiro.backends.sqlite import entries
from carteiro.backends.sqlite.publishing import publish, unblock
from carteiro.backends.sqlite.session import Session, micros
from carteiro.message import (
    DEAD_ATTEMPTS,
    DEAD_GROUP,
    DEAD_REASON,
    DEAD_TOPIC,
    NO_HEADERS,
    Action,
    Delivery,
    Failure,
    Message,
    Outcome,
    Outgoing,
    Subscription,
    new_id,
)
from carteiro.topics import dlq_name

_INLINE = 65_536  # bytes: a larger body is read by itself, so that no claim builds one value of any size

_Row = tuple[int, int, int, str, str, str | None, dict[str, str] | None, str | None, tuple[Failure, ...] | None, int]
_decode_rows = msgspec.json.Decoder(list[_Row]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode
_encode = msgspec.json.Encoder().encode


class Claimed:
    """What one claim took, as SQLite gave it; made into deliveries once the file's lock is free again.

    One JSON value and one value of all the bodies, not a result row each: see the head of `statements.sql`.
    """

    def __init__(self, subscription: Subscription, number: int, rows: list[_Row], bodies: bytes) -> None:
        self._subscription = subscription
        self._number = number
        self._rows = rows
        self._bodies = bodies
        self._large: dict[int, bytes] = {}

    def read_large(self, session: Session) -> None:
        for row in self._rows:
            if row[9] > _INLINE:
                self._large[row[0]] = session.run("body", (row[0],)).fetchone()[0]

    def deliveries(self) -> list[Delivery]:
        made: list[Delivery] = []
        subscription, number, bodies = self._subscription, self._number, self._bodies
        start = 0
        for row, attempt, published, id, topic, key, headers, correlation_id, history, size in self._rows:
            if size <= _INLINE:
                body = bodies[start : start + size]
                start += size
            else:
                body = self._large[row]
            message = Message(
                id, topic, body, key, headers or NO_HEADERS, correlation_id or id, published / 1_000_000, attempt
            )
            made.append(Delivery(subscription, message, (row, number), history or ()))
        return made


def claim(session: Session, subscription: Subscription, room: int) -> Claimed | None:
    """Lease what is visible of a subscription, up to `room`, in the order of (visible_at, id); None if nothing is."""
    number = session.claim_number()
    parameters = {
        "subscription": session.routes.get(subscription).id,
        "now": session.now,
        "room": room,
        "inline": _INLINE,
        "until": session.now + micros(subscription.lease),
        "token": number,
    }
    rows, bodies = session.run("claim_read", parameters).fetchone()
    claimed = _decode_rows(rows)
    if not claimed:
        return None
    session.run("claim_take", parameters)
    taken = Claimed(subscription, number, claimed, bodies)
    taken.read_large(session)
    return taken


def renew(session: Session, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Each lease its full length from now; returns those whose lease was lost."""
    lost: list[Delivery] = []
    claims: defaultdict[tuple[int, float], list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        claims[delivery.token[1], delivery.subscription.lease].append(delivery)
    for (number, lease), group in claims.items():
        ids = _encode([delivery.token[0] for delivery in group]).decode()
        if session.run("renew", (session.now + micros(lease), number, ids)).rowcount != len(group):
            held = _held(session, number, ids)
            lost += (delivery for delivery in group if delivery.token[0] not in held)
    return lost


def settle(session: Session, outcomes: Sequence[Outcome]) -> list[Delivery]:
    """Apply each outcome whole; returns the deliveries of those that do not hold."""
    acks: defaultdict[int, list[Outcome]] = defaultdict(list)
    applied: list[Outcome] = []
    lost: list[Delivery] = []
    outgoing: list[Outgoing] = []
    for outcome in outcomes:
        if outcome.action is Action.ACK and not outcome.writes:
            acks[outcome.delivery.token[1]].append(outcome)
        elif _settle_one(session, outcome, outgoing):
            applied.append(outcome)
        else:
            lost.append(outcome.delivery)
    for number, group in acks.items():
        done = _ack(session, number, group)
        applied += done
        if len(done) != len(group):
            kept = {id(outcome) for outcome in done}
            lost += (outcome.delivery for outcome in group if id(outcome) not in kept)
    unblock(session, _lanes(session, applied))
    for outcome in applied:
        outgoing += outcome.emits
    publish(session, outgoing)
    return lost


def _ack(session: Session, number: int, outcomes: list[Outcome]) -> list[Outcome]:
    """Delete the rows of one claim in one statement; look for those that were lost only if the count is short."""
    ids = _encode([outcome.delivery.token[0] for outcome in outcomes]).decode()
    session.connection.execute("SAVEPOINT ack")
    deleted = session.run("ack", (number, ids)).rowcount
    if deleted != len(outcomes):
        session.connection.execute("ROLLBACK TO ack")
        held = _held(session, number, ids)
        first = {one.delivery.token[0]: one for one in reversed(outcomes)}  # of two for one delivery, the first holds
        outcomes = [one for row, one in first.items() if row in held]
        session.run("ack", (number, ids))
    session.connection.execute("RELEASE ack")
    return outcomes


def _held(session: Session, number: int, ids: str) -> set[int]:
    return set(_decode_ids(session.run("held", (number, ids)).fetchone()[0]))


def _settle_one(session: Session, outcome: Outcome, outgoing: list[Outgoing]) -> bool:
    row, number = outcome.delivery.token
    if row not in _held(session, number, f"[{row}]") or not entries.write_all(session, outcome.writes):
        return False
    at = session.now + micros(outcome.delay)
    match outcome.action:
        case Action.ACK:
            session.run("ack", (number, f"[{row}]"))
        case Action.RETRY:
            session.run("retry", (at, _history(outcome), row, number))
        case Action.RELEASE:
            session.run("release", (at, row, number))
        case Action.DEAD:
            outgoing.append(_bury(session, outcome))
    return True


def _bury(session: Session, outcome: Outcome) -> Outgoing:
    """Move it to the dead letters; returns the message that tells those who subscribe to their queue."""
    subscription, message = outcome.delivery.subscription, outcome.delivery.message
    row, number = outcome.delivery.token
    several = session.routes.targets(message.topic).groups > 1
    queue = dlq_name(message.topic, subscription.group if several else None)
    reason = "" if outcome.failure is None else _storable(outcome.failure.error)
    place = (queue, subscription.topic, subscription.group, session.now, reason, _history(outcome), row, number)
    session.run("bury", place)
    session.run("ack", (number, f"[{row}]"))
    headers = {
        **message.headers,
        DEAD_REASON: reason,
        DEAD_TOPIC: message.topic,
        DEAD_GROUP: subscription.group,
        DEAD_ATTEMPTS: str(message.attempt),
    }
    return Outgoing(new_id(), queue, message.body, message.key, headers, message.correlation_id)


def _history(outcome: Outcome) -> str | None:
    history = outcome.delivery.history
    if outcome.failure is not None:
        failure = outcome.failure
        history = (
            *history,
            Failure(failure.attempt, failure.at, _storable(failure.error), _storable(failure.traceback)),
        )
    return _encode(history).decode() if history else None


def _storable(text: str) -> str:
    """An exception's text may hold lone surrogates, as of a file's name; UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()


def _lanes(session: Session, outcomes: Iterable[Outcome]) -> set[tuple[int, str]]:
    """The lanes whose head may have gone."""
    lanes: set[tuple[int, str]] = set()
    for outcome in outcomes:
        key = outcome.delivery.message.key
        if key is not None and outcome.action in (Action.ACK, Action.DEAD):
            subscription = outcome.delivery.subscription
            route = session.routes.find(subscription.topic, subscription.group)
            if route is not None and route.ordered:
                lanes.add((route.id, key))
    return lanes
