"""From outcomes to what `settle.lua` takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from carteiro.backends.redis.publishing import AT_ONCE, Rows, compose, compose_all, micros, raw
from carteiro.backends.redis.routes import Routes, Targets
from carteiro.errors import Unencodable
from carteiro.message import Action, Delivery, Join, Outcome, Outgoing, Write
from carteiro.ports.dead_letters import dead_notice, dead_queue, reason_of, whole_history

_ACK, _RETRY, _DEAD = Action.ACK, Action.RETRY, Action.DEAD  # an enum's own names are slow
LARGEST: Final = 4 * AT_ONCE
"""Bytes, about, of what goes with one outcome: it is applied in one step."""

_encode = msgspec.msgpack.Encoder().encode


def settlements(outcomes: Iterable[Outcome]) -> Iterator[Settlement]:
    """One, unless there are more than AT_ONCE bytes: then several, each with outcomes that are whole."""
    rest = iter(outcomes)
    while settlement := Settlement(rest):
        yield settlement


class Settlement:
    """One settle: what to send, and afterwards what became of it. Of several outcomes for one delivery the first is.

    It takes outcomes until these are enough for one request.
    """

    def __init__(self, outcomes: Iterator[Outcome]) -> None:
        size = 0
        self._acks: dict[str, list[bytes]] = {}
        self._others: list[tuple[str, bytes, Outcome]] = []
        self._deliveries: dict[bytes, Delivery] = {}
        self._repeated: list[Delivery] = []
        self._unrouted: dict[bytes, list[Outgoing]] = {}
        self._unrouted_joins: list[list[Outgoing]] = []
        self.needs_routes = False
        for outcome in outcomes:
            delivery = outcome.delivery
            queue, token = delivery.token
            if token in self._deliveries:
                self._repeated.append(delivery)
                continue
            self._deliveries[token] = delivery
            if _is_plain(outcome) and not outcome.writes:
                self._acks.setdefault(queue, []).append(token)
            else:
                self.needs_routes = self.needs_routes or _needs_routes(outcome)
                self._others.append((queue, token, outcome))
                size += _checked_size(outcome)
                if size > AT_ONCE:
                    break

    def __bool__(self) -> bool:
        return bool(self._deliveries)

    def request(self, routes: Routes | None, rows: Rows) -> tuple[Any, ...]:
        """With `routes` where it needs them. Raises Unencodable for an emit that cannot be kept."""
        self._unrouted.clear()
        self._unrouted_joins.clear()
        acks = [part for queue, tokens in self._acks.items() for part in (queue, raw(b"".join(tokens)))]
        others = [self._other(queue, token, outcome, routes, rows) for queue, token, outcome in self._others]
        return (False if routes is None else routes.version, acks, others)

    def lost(self, answer: Sequence[Any]) -> list[Delivery]:
        return [*(self._deliveries[token] for token in answer[0]), *self._repeated]

    def unrouted(self, answer: Sequence[Any]) -> list[Outgoing]:
        """What was emitted and no group gets."""
        lost, published_joins = answer
        of_outcomes = (messages for token, messages in self._unrouted.items() if token not in lost)
        of_joins = (self._unrouted_joins[number - 1] for number in published_joins)
        return [*chain.from_iterable(of_outcomes), *chain.from_iterable(of_joins)]

    def _other(self, queue: str, token: bytes, outcome: Outcome, routes: Routes | None, rows: Rows) -> tuple[Any, ...]:
        writes = [write_of(write) for write in outcome.writes]
        if _is_plain(outcome):
            return (queue, raw(token), writes)
        failures: msgspec.Raw | bool = False
        letter: tuple[str, msgspec.Raw] | bool = False
        emits: list[tuple[Outgoing, Targets]] = []
        if outcome.action is _RETRY:
            history = whole_history(outcome)
            failures = raw(_encode(history)) if history else False
        if routes is not None:
            if outcome.action is _DEAD:
                letter, emits = _bury(outcome, routes)
            emits += ((emit, routes.of(emit)) for emit in outcome.emits)
        parts, unrouted = compose(emits, rows)
        if outcome.emits and unrouted:
            self._unrouted[token] = [message for message in unrouted if message in outcome.emits]
        joins = [self._join(join, routes, rows) for join in outcome.joins] if outcome.joins else ()
        return (queue, raw(token), writes, outcome.action.value, micros(outcome.delay), failures, letter, parts, joins)

    def _join(self, join: Join, routes: Routes | None, rows: Rows) -> tuple[Any, ...]:
        parts, unrouted = ([], []) if routes is None else compose_all(routes, join.emits, rows)
        if unrouted:
            self._unrouted_joins.append(unrouted)
        return (*join_of(join), parts, len(self._unrouted_joins) if unrouted else False)


def _is_plain(outcome: Outcome) -> bool:
    """Whether it ends the delivery well, and publishes nothing."""
    return outcome.action is _ACK and not (outcome.emits or outcome.joins)


def _needs_routes(outcome: Outcome) -> bool:
    return bool(outcome.emits) or outcome.action is _DEAD or any(join.emits for join in outcome.joins)


def _checked_size(outcome: Outcome) -> int:
    """About how many bytes go with it: its failures, what it and its joins emit and write, and a notice if it is dead.

    Raises Unencodable if these are more than can be applied as a whole.
    """
    size = _size(outcome)
    for join in outcome.joins:
        size += _size(join)
    if outcome.failure is not None:
        failures = (*outcome.delivery.history, outcome.failure)
        size += sum(len(failure.error) + len(failure.traceback) for failure in failures)
        size += len(outcome.delivery.message.body)
    if size > LARGEST:
        raise Unencodable(
            f"what `{outcome.delivery.message.id}` emits and writes has {size / 1_048_576:.1f} MB, and Redis takes no "
            f"more than {LARGEST >> 20} MB in one step: emit less from one message"
        )
    return size


def _size(what: Outcome | Join) -> int:
    size = 0
    for emit in what.emits:
        size += len(emit.body)
    for write in what.writes:
        size += 0 if write.value is None else len(write.value)
    return size


def write_of(write: Write) -> tuple[Any, ...]:
    """As `entries.lua` takes it."""
    return (
        write.key,
        False if write.value is None else raw(write.value),
        False if write.ttl is None else micros(write.ttl),
        False if write.expect is None else write.expect,
    )


def join_of(join: Join) -> tuple[Any, ...]:
    """As `joins.lua` takes it."""
    ttl = False if join.ttl is None else micros(join.ttl)
    return (join.key, join.member, join.actor, join.size, ttl, [write_of(write) for write in join.writes])


def _bury(outcome: Outcome, routes: Routes) -> tuple[tuple[str, msgspec.Raw], list[tuple[Outgoing, Targets]]]:
    """The letter, and the messages that tell those who subscribe to its queue, under either of its names."""
    subscription, message = outcome.delivery.subscription, outcome.delivery.message
    queue, alias = dead_queue(message.topic, subscription.group, routes.targets(message.topic).groups)
    reason = reason_of(outcome)
    words = _encode((queue, subscription.topic, subscription.group, reason, whole_history(outcome)))
    told = [(dead_notice(message, subscription.group, reason, queue), routes.targets(queue))]
    others = routes.targets(alias, besides=queue)
    if not others.nobody:
        told.append((dead_notice(message, subscription.group, reason, alias), others))
    return (queue, raw(words)), told
