"""Subscriptions and retentions come, change and go; and what a topic's log gives again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from carteiro.backends.sqlite.keeper import LIFETIME
from carteiro.backends.sqlite.publishing import lane_of
from carteiro.backends.sqlite.routes import Route
from carteiro.backends.sqlite.session import Session, micros
from carteiro.errors import BrokerError
from carteiro.message import Retention, Subscription
from carteiro.ports.records import unpack


def declare(session: Session, subscriptions: Sequence[Subscription], retentions: Sequence[Retention]) -> None:
    """Make them exist, in one step for all; the routes' version changes only if something did."""
    changed = [_retain(session, retention) for retention in retentions]
    if any(changed):
        session.routes_changed()
    for subscription in subscriptions:
        route = session.routes.find(subscription.topic, subscription.group)
        if route is None:
            _add(session, subscription)
        elif subscription.ephemeral or route.expires_at is not None or route.ordered != subscription.ordered:
            _change(session, route, subscription)


def remove(session: Session, topic: str, group: str) -> None:
    """The group receives nothing from now on, and what waited for it is gone. Harmless where there is none."""
    route = session.routes.find(topic, group)
    if route is not None:
        session.run("remove_deliveries", (route.id,))
        session.run("remove_subscription", (route.id,))
        session.routes_changed()


def rewind(session: Session, subscription: Subscription, since: float) -> int:
    """Deliver again what the logs hold since then; returns how many were added. Raises BrokerError without a log."""
    if not session.routes.retained(subscription.topic):
        raise BrokerError(
            f"cannot rewind {subscription}: `{subscription.topic}` keeps nothing; "
            'declare the topic with a retention, such as retain="7d", and what is published from then on is kept'
        )
    return _deliver_again(session, session.routes.get(subscription), micros(since))


def _retain(session: Session, retention: Retention) -> bool:
    duration = micros(retention.seconds)
    if session.routes.duration(retention.topic) == duration:
        return False
    parameters = {"topic": retention.topic, "duration": duration}
    session.run("retain", parameters)
    session.run("extend_log", parameters)
    return True


def _add(session: Session, subscription: Subscription) -> None:
    session.run(
        "add_subscription",
        (subscription.topic, subscription.group, subscription.ordered, _expiry(session, subscription)),
    )
    session.routes_changed()
    if subscription.start != "latest":
        since = 0 if subscription.start == "earliest" else micros(float(subscription.start))
        _deliver_again(session, session.routes.get(subscription), since)


def _change(session: Session, route: Route, subscription: Subscription) -> None:
    session.run("change_subscription", (subscription.ordered, _expiry(session, subscription), route.id))
    if subscription.ordered and not route.ordered:
        lanes = [(id, lane_of(unpack(record).key)) for id, record in session.run("records", (route.id,))]
        keyed = msgspec.json.encode([(id, lane) for id, lane in lanes if lane is not None]).decode()
        session.run("begin_order", {"lanes": keyed, "now": session.now})
        session.run("unblock_subscription", (route.id,))
    elif route.ordered and not subscription.ordered:
        session.run("end_order", (route.id,))
    session.routes_changed()


def _expiry(session: Session, subscription: Subscription) -> int | None:
    return session.now + LIFETIME if subscription.ephemeral else None


def _deliver_again(session: Session, route: Route, since: int) -> int:
    parameters = {
        "subscription": route.id,
        "ordered": route.ordered,
        "topics": msgspec.json.encode(session.routes.retained(route.topic)).decode(),
        "since": since,
        "now": session.now,
    }
    # In an ordered subscription what still waits gets its place among what comes again.
    dropped = session.run("drop_logged", parameters).rowcount
    (last,) = session.run("last_delivery", (route.id,)).fetchone()
    added = session.run("deliver_again", parameters).rowcount
    if route.ordered:
        _line_up(session, route, last)
    session.run("unblock_subscription", (route.id,))
    return added - dropped


def _line_up(session: Session, route: Route, last: int) -> None:
    """Where what was added after `last` stands behind what waits in its lane, put both into the order published."""
    parameters = {"subscription": route.id, "now": session.now, "last": last}
    lanes, newest = session.run("mixed_lanes", parameters).fetchone()
    if lanes != "[]":
        session.run("line_up", {**parameters, "lanes": lanes})
        session.run("drop_lined_up", {**parameters, "lanes": lanes, "newest": newest})
