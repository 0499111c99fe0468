"""`redis://` and its kin: broker and store on Redis 7 and later, and on Valkey."""

from carteiro.backends.redis.backend import RedisBackend, open_backend
from carteiro.backends.redis.broker import RedisBroker
from carteiro.backends.redis.consumer import RedisConsumer
from carteiro.backends.redis.natives import RedisChannel, RedisList, RedisStream
from carteiro.backends.redis.store import RedisStore

__all__ = [
    "RedisBackend",
    "RedisBroker",
    "RedisChannel",
    "RedisConsumer",
    "RedisList",
    "RedisStore",
    "RedisStream",
    "open_backend",
]
