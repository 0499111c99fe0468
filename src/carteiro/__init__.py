"""Event handlers, task queues, workflows and schedules: one framework, from an embedded broker to the big ones."""

from carteiro.app import Carteiro
from carteiro.errors import (
    BatchFailed,
    BrokerCorrupted,
    BrokerError,
    BrokerUnavailable,
    CarteiroError,
    CircuitOpen,
    ConfigurationError,
    HandlerFailed,
    HandlerTimeout,
    InvalidBody,
    InvalidHandler,
    InvalidTopic,
    NoHandler,
    NotConnected,
    Reject,
    RequestFailed,
    RequestTimeout,
    RetryLater,
    Unencodable,
    UnknownBackend,
    Unroutable,
    UnsupportedFeature,
    WorkerLost,
)
from carteiro.handlers.injected import Emit, Logger
from carteiro.handlers.markers import Body, Depends, Header, Path, Topic
from carteiro.message import Message, Outgoing
from carteiro.policies.batch import Batch
from carteiro.policies.breaker import Breaker
from carteiro.policies.idempotency import Idempotency
from carteiro.policies.reprocess import Reprocess
from carteiro.policies.retry import Retry, constant, exponential
from carteiro.router import Router

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchFailed",
    "Body",
    "Breaker",
    "BrokerCorrupted",
    "BrokerError",
    "BrokerUnavailable",
    "Carteiro",
    "CarteiroError",
    "CircuitOpen",
    "ConfigurationError",
    "Depends",
    "Emit",
    "HandlerFailed",
    "HandlerTimeout",
    "Header",
    "Idempotency",
    "InvalidBody",
    "InvalidHandler",
    "InvalidTopic",
    "Logger",
    "Message",
    "NoHandler",
    "NotConnected",
    "Outgoing",
    "Path",
    "Reject",
    "Reprocess",
    "RequestFailed",
    "RequestTimeout",
    "Retry",
    "RetryLater",
    "Router",
    "Topic",
    "Unencodable",
    "UnknownBackend",
    "Unroutable",
    "UnsupportedFeature",
    "WorkerLost",
    "constant",
    "exponential",
]
