"""`memory://`: the broker and store that live in one process, and the model that the others are tested against."""

from carteiro.backends.memory.backend import MemoryBackend, open_backend
from carteiro.backends.memory.broker import MemoryBroker
from carteiro.backends.memory.consumer import MemoryConsumer
from carteiro.backends.memory.store import MemoryStore

__all__ = ["MemoryBackend", "MemoryBroker", "MemoryConsumer", "MemoryStore", "open_backend"]
