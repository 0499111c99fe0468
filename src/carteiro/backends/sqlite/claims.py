"""Claim, renew, settle: a delivery's life between a worker and the file.

    visible --claim--> leased --ack--> gone
                         |  \\--retry, release--> visible at its time
                         |   \\--dead--> dead letter
                         \\--the lease ends--> visible

A claim moves `visible_at` to the lease's end, adds one to `attempt` and stamps the row with its token, which no other
claim ever had: the *fence*. Renew and settle name (row, token) and act only where the row still bears that token; a
retry and a release erase it. So a worker that slept through its lease can settle nothing that someone else has taken
since, and nobody can settle twice. A worker that dies leaves the lease to end by itself.

An outcome is applied whole or not at all. Nearly always all of them hold, so a settle acts first, a statement for all
outcomes of one kind, and counts what it changed. Where that is too little it raises `Contested`, the transaction is
undone and run again, *carefully*: then it looks first which outcomes hold, and leaves the others out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, Final

import msgspec

from carteiro.backends.sqlite import entries
from carteiro.backends.sqlite.joins import make
from carteiro.backends.sqlite.publishing import fan_out, lane_of, unblock
from carteiro.backends.sqlite.routes import Targets
from carteiro.backends.sqlite.session import Session, micros
from carteiro.message import Action, Delivery, Failure, Message, Outcome, Outgoing, Subscription
from carteiro.ports.dead_letters import dead_notice, dead_queue, reason_of, whole_history
from carteiro.ports.records import at_attempt, unpack, unpack_all

_INLINE: Final = 65_536
"""Bytes: a larger record is read by itself, so that no claim builds one value of any size."""

_Again = tuple[int, int, tuple[Failure, ...] | None]
"""Of a row that was claimed before: its id, its attempt, the failures so far."""

_decode_again = msgspec.json.Decoder(list[_Again]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode
_encode = msgspec.json.Encoder().encode

_ACK, _RETRY, _DEAD, _RELEASE = Action.ACK, Action.RETRY, Action.DEAD, Action.RELEASE  # an enum's own names are slow


class Contested(Exception):
    """Some outcome of a settle does not hold; the transaction is to be undone and run again, carefully."""


class Claimed:
    """What one claim took, as SQLite gave it; made into deliveries once the file's lock is free again.

    One JSON value and one value of all the records, not a result row each: see the head of `statements.sql`.
    """

    def __init__(self, subscription: Subscription, token: int, ids: list[int], again: str, records: bytes) -> None:
        self._subscription = subscription
        self._token = token
        self._ids = ids
        self._again = again
        self._records = records
        self._large: dict[int, bytes] = {}

    def read_large(self, session: Session, ids: list[int]) -> None:
        for id in ids:
            self._large[id] = session.run("record", (id,)).fetchone()[0]

    def deliveries(self) -> list[Delivery]:
        """In the order of the claim. Raises BrokerCorrupted for a record that cannot be read."""
        subscription, token, ids = self._subscription, self._token, self._ids
        messages = self._messages()
        if self._again == "[]":
            return [Delivery(subscription, message, (id, token)) for id, message in zip(ids, messages, strict=True)]
        again = {id: (attempt, history or ()) for id, attempt, history in _decode_again(self._again)}
        made: list[Delivery] = []
        for id, message in zip(ids, messages, strict=True):
            attempt, history = again.get(id, (1, ()))
            made.append(Delivery(subscription, at_attempt(message, attempt), (id, token), history))
        return made

    def _messages(self) -> list[Message]:
        small = unpack_all(self._records, len(self._ids) - len(self._large))
        if not self._large:
            return small
        rest = iter(small)
        return [unpack(self._large[id]) if id in self._large else next(rest) for id in self._ids]


def claim(session: Session, subscription: Subscription, room: int) -> tuple[Claimed | None, int | None]:
    """Lease what is visible of a subscription, up to `room`, in the order of (visible_at, id).

    Returns that, or None if nothing is, and when the first of the subscription was or becomes visible.
    """
    route = session.routes.get(subscription)
    wanted = {"subscription": route.id, "now": session.now, "room": room, "inline": _INLINE}
    rows, large, again, records, earliest = session.run("claim_read", wanted).fetchone()
    ids = _decode_ids(rows)
    if not ids:
        return None, earliest
    if route.ordered and again != "[]" and session.run("block_lost", (rows,)).rowcount:
        return claim(session, subscription, room)
    token = session.new_token()
    session.run("claim_take", {"until": session.now + micros(subscription.lease), "token": token, "ids": rows})
    taken = Claimed(subscription, token, ids, again, records)
    if large != "[]":
        taken.read_large(session, _decode_ids(large))
    return taken, earliest


def renew(session: Session, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Each lease its full length from now; returns those whose lease was lost."""
    lost: list[Delivery] = []
    claims: defaultdict[tuple[int, float], list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        claims[delivery.token[1], delivery.subscription.lease].append(delivery)
    for (token, lease), group in claims.items():
        ids = _json([delivery.token[0] for delivery in group])
        if session.run("renew", (session.now + micros(lease), token, ids)).rowcount != len(group):
            held = _held(session, token, ids)
            lost += (delivery for delivery in group if delivery.token[0] not in held)
    return lost


def settle(session: Session, outcomes: Sequence[Outcome]) -> tuple[list[Delivery], list[Outgoing]]:
    """Apply each outcome whole; returns the deliveries of those that do not hold, and emits that no group gets.

    Raises Contested.
    """
    lost: list[Delivery] = []
    if session.careful:
        outcomes, lost = _sort_out(session, outcomes)
    applied, refused = _written(session, outcomes)
    notices = _bury(session, _with(_DEAD, applied))
    _remove(session, [outcome for outcome in applied if outcome.action is _ACK or outcome.action is _DEAD])
    _move(session, "retry", [(*_place(session, one), _history(one)) for one in _with(_RETRY, applied)])
    _move(session, "release", [_place(session, one) for one in _with(_RELEASE, applied)])
    unblock(session, _lanes(session, applied))
    emits = [(emit, session.routes.targets(emit.topic)) for outcome in applied for emit in outcome.emits]
    joins = [join for outcome in applied for join in outcome.joins]
    if joins:
        full = [join for join, is_full in zip(joins, make(session, joins), strict=True) if is_full]
        emits += [(emit, session.routes.targets(emit.topic)) for join in full for emit in join.emits]
    fan_out(session, notices)
    return [*lost, *refused], fan_out(session, emits) if emits else []


def _written(session: Session, outcomes: Sequence[Outcome]) -> tuple[Sequence[Outcome], list[Delivery]]:
    """Make their writes; the outcomes that hold, and the deliveries of those for which a version was another."""
    groups = [outcome.writes for outcome in outcomes]
    if not any(groups):
        return outcomes, []
    made = entries.write(session, groups)
    if all(made):
        return outcomes, []
    return [*compress(outcomes, made)], [one.delivery for one, holds in zip(outcomes, made, strict=True) if not holds]


def _with(action: Action, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.action is action]


def _sort_out(session: Session, outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Delivery]]:
    """The outcomes whose fence holds, of several for one delivery the first; and the deliveries of the others."""
    claims: defaultdict[int, list[int]] = defaultdict(list)
    for outcome in outcomes:
        id, token = outcome.delivery.token
        claims[token].append(id)
    held = {(id, token) for token, ids in claims.items() for id in _held(session, token, _json(ids))}
    kept: list[Outcome] = []
    lost: list[Delivery] = []
    for outcome in outcomes:
        if outcome.delivery.token in held:
            held.remove(outcome.delivery.token)
            kept.append(outcome)
        else:
            lost.append(outcome.delivery)
    return kept, lost


def _held(session: Session, token: int, ids: str) -> set[int]:
    return set(_decode_ids(session.run("held", (token, ids)).fetchone()[0]))


def _remove(session: Session, outcomes: Iterable[Outcome]) -> None:
    claims: defaultdict[int, list[int]] = defaultdict(list)
    for outcome in outcomes:
        id, token = outcome.delivery.token
        claims[token].append(id)
    for token, ids in claims.items():
        ids.sort()
        if _is_run(ids):
            removed = session.run("ack_run", (token, ids[0], ids[-1]))
        else:
            removed = session.run("ack", (token, _json(ids)))
        _expect(removed.rowcount, len(ids))


def _is_run(ids: Sequence[int]) -> bool:
    """Whether they follow each other without a gap, as those of one batch do where all went well.

    SQLite then deletes the rows as it passes them: a quarter faster than one by one from a list. (A claim gained 5 %.)
    """
    first, last = ids[0], ids[-1]
    return last - first + 1 == len(ids) and ids == list(range(first, last + 1))


def _place(session: Session, outcome: Outcome) -> tuple[int, int, int]:
    """Row, token, and when it becomes visible."""
    id, token = outcome.delivery.token
    return id, token, session.now + micros(outcome.delay)


def _move(session: Session, statement: str, places: Sequence[tuple[Any, ...]]) -> None:
    if places:
        _expect(session.run(statement, (_json(places),)).rowcount, len(places))


def _expect(changed: int, wanted: int) -> None:
    if changed != wanted:
        raise Contested


def _bury(session: Session, outcomes: Sequence[Outcome]) -> list[tuple[Outgoing, Targets]]:
    """Copy them to the dead letters; returns the messages that tell those who subscribe to their queues."""
    dead: list[tuple[Any, ...]] = []
    notices: list[tuple[Outgoing, Targets]] = []
    for outcome in outcomes:
        subscription, message = outcome.delivery.subscription, outcome.delivery.message
        queue, alias = dead_queue(message.topic, subscription.group, session.routes.targets(message.topic).groups)
        reason = reason_of(outcome)
        dead.append((*outcome.delivery.token, queue, subscription.topic, subscription.group, reason, _history(outcome)))
        notices.append((dead_notice(message, subscription.group, reason, queue), session.routes.targets(queue)))
        # Who listens to the other name still hears, under that name, when a second group changes which the queue has.
        others = session.routes.targets(alias, besides=queue)
        if not others.nobody:
            notices.append((dead_notice(message, subscription.group, reason, alias), others))
    if dead:
        session.run("bury", {"dead": _json(dead), "now": session.now})
    return notices


def _history(outcome: Outcome) -> tuple[Failure, ...] | None:
    return whole_history(outcome) or None


def _lanes(session: Session, outcomes: Iterable[Outcome]) -> set[tuple[int, str]]:
    """The lanes whose head may have gone."""
    lanes: set[tuple[int, str]] = set()
    for outcome in outcomes:
        delivery = outcome.delivery
        if delivery.message.key is not None and outcome.action in (_ACK, _DEAD):
            route = session.routes.find(delivery.subscription.topic, delivery.subscription.group)
            lane = lane_of(delivery.message.key)
            if route is not None and route.ordered and lane is not None:
                lanes.add((route.id, lane))
    return lanes


def _json(value: Any) -> str:
    return _encode(value).decode()
