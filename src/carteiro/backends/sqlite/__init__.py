"""`sqlite://`: a broker and store in one file, shared by any number of processes on a machine."""

from carteiro.backends.sqlite.backend import SqliteBackend, open_backend
from carteiro.backends.sqlite.broker import SqliteBroker
from carteiro.backends.sqlite.consumer import SqliteConsumer
from carteiro.backends.sqlite.store import SqliteStore

__all__ = ["SqliteBackend", "SqliteBroker", "SqliteConsumer", "SqliteStore", "open_backend"]
