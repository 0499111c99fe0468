"""From an outcome to what must be published before its delivery is acked.

The order makes a crash a duplicate and never a loss: first what the outcome sends (its emits, the message itself if it
is to come again, its dead letter), each confirmed by the server; then the ack.
"""

from __future__ import annotations

from typing import Final

import msgspec

from carteiro.backends.rabbitmq import delays
from carteiro.backends.rabbitmq.natives import RabbitExchange, RabbitQueue
from carteiro.backends.rabbitmq.publishing import Parcel
from carteiro.backends.rabbitmq.register import Letters
from carteiro.backends.rabbitmq.server import Server
from carteiro.backends.rabbitmq.wire import write_properties
from carteiro.errors import UnsupportedFeature
from carteiro.message import EXPIRES_AT, REPLY_TO, Action, Delivery, Failure, Message, Outcome, Outgoing, new_id
from carteiro.ports.dead_letters import dead_notice, dead_queue, reason_of, whole_history

LETTER: Final = "carteiro-letter"
LETTER_GROUP: Final = "carteiro-letter-group"
LETTER_TOPIC: Final = "carteiro-letter-topic"
LETTER_QUEUE: Final = "carteiro-letter-queue"
REASON: Final = "carteiro-letter-reason"
DIED: Final = "carteiro-letter-died"


def outgoing(server: Server, message: Outgoing, *, also_to: str | None = None) -> Parcel:
    """A message that is published. Raises UnsupportedFeature or Unencodable for what RabbitMQ cannot carry."""
    if message.dedupe is not None:
        raise UnsupportedFeature(
            f"`{message.topic}`: RabbitMQ does not drop a second message with an id that was published before; have "
            "its handler do so, by idempotency="
        )
    names, topic, now = server.names, message.topic, server.clock.time()
    content = Message(message.id, topic, message.body, message.key, message.headers, message.correlation_id, now)
    if message.target is not None:
        return _addressed(message, content, now)
    if message.delay > 0:
        exchange, key = delays.route(message.delay, names.delayed(topic))
        return Parcel(exchange, key, message.id, write_properties(content, topic=True), message.body)
    properties = write_properties(content, also_to=also_to)
    return Parcel(names.exchange(topic), topic, message.id, properties, message.body)


def emitted(server: Server, delivery: Delivery, message: Outgoing) -> Parcel:
    """What a handler publishes. The answer to what came by a queue or an exchange goes to the queue that asked."""
    parcel = outgoing(server, message)
    asked = delivery.message.headers.get(REPLY_TO)
    if delivery.subscription.source is None or message.topic != asked or message.topic.startswith("$"):
        return parcel
    return msgspec.structs.replace(parcel, exchange="", routing_key=message.topic)


def _addressed(message: Outgoing, content: Message, now: float) -> Parcel:
    """To a queue or an exchange of its own; the server too then drops it when it expires."""
    target = message.target
    if isinstance(target, RabbitExchange):
        exchange, key = target.name, target.key_of(message)
    else:
        assert isinstance(target, RabbitQueue)
        exchange, key = "", target.name
        if message.delay > 0:  # there it would expire as if it were there already
            exchange, key = delays.route(message.delay, delays.address_of_queue(target.name))
            return Parcel(exchange, key, message.id, write_properties(content, topic=True), message.body)
    expires_at = message.headers.get(EXPIRES_AT)
    expiration = None if expires_at is None else float(expires_at) - now
    return Parcel(exchange, key, message.id, write_properties(content, expiration=expiration), message.body)


def again(server: Server, queue: str, outcome: Outcome) -> Parcel:
    """The message, back to its queue, with the attempts that it has had."""
    delivery, message = outcome.delivery, outcome.delivery.message
    counts = outcome.action is not Action.RELEASE
    history = whole_history(outcome) if counts else delivery.history
    return _back(queue, message, message.attempt if counts else message.attempt - 1, history, outcome.delay)


def handed_back(queue: str, delivery: Delivery, delay: float = 0.0) -> Parcel:
    """What was pushed and is not handled here, as it came."""
    return _back(queue, delivery.message, delivery.message.attempt - 1, delivery.history, delay)


def replayed(queue: str, message: Message) -> Parcel:
    """A dead letter, to begin anew."""
    return _back(queue, message, 0, (), 0.0)


def _back(queue: str, message: Message, attempts: int, history: tuple[Failure, ...], delay: float) -> Parcel:
    properties = write_properties(message, topic=True, attempts=attempts, failures=history)
    exchange, key = delays.route(delay, delays.address_of_queue(queue)) if delay > 0 else ("", queue)
    return Parcel(exchange, key, message.id, properties, message.body)


async def dead(server: Server, outcome: Outcome) -> list[Parcel]:
    """The letter, and a notice for those who listen to either name of its queue."""
    delivery = outcome.delivery
    subscription, message = delivery.subscription, delivery.message
    listing = await server.register.read(fresh=False)
    name, other = dead_queue(message.topic, subscription.group, listing.groups_of(message.topic))
    letters = Letters(server.names.letters(name), subscription.topic, subscription.group)
    await server.make_letters(letters)
    reason = reason_of(outcome)
    letter = {
        LETTER: new_id(),
        LETTER_QUEUE: name,
        LETTER_TOPIC: subscription.topic,
        LETTER_GROUP: subscription.group,
        REASON: reason,
        DIED: repr(server.clock.time()),
    }
    properties = write_properties(
        message, topic=True, attempts=message.attempt, failures=whole_history(outcome), more=letter
    )
    notice = outgoing(server, dead_notice(message, subscription.group, reason, name), also_to=other)
    return [
        Parcel("", letters.queue, message.id, properties, message.body),
        msgspec.structs.replace(notice, mandatory=False),  # most have no listener
    ]
