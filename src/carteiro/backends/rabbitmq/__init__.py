"""`amqp://` and `amqps://`: a broker on RabbitMQ 3.10 and later."""

from carteiro.backends.rabbitmq.backend import RabbitBackend, open_backend
from carteiro.backends.rabbitmq.broker import RabbitBroker
from carteiro.backends.rabbitmq.consumer import RabbitConsumer
from carteiro.backends.rabbitmq.natives import RabbitBinding, RabbitExchange, RabbitQueue

__all__ = [
    "RabbitBackend",
    "RabbitBinding",
    "RabbitBroker",
    "RabbitConsumer",
    "RabbitExchange",
    "RabbitQueue",
    "open_backend",
]
