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
    NoResult,
    NotConnected,
    Reject,
    RequestFailed,
    RequestTimeout,
    ResultTimeout,
    ResultTooLarge,
    RetryLater,
    SoftTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
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
from carteiro.policies.limit import Limit
from carteiro.policies.reprocess import Reprocess
from carteiro.policies.retry import Retry, constant, exponential
from carteiro.router import Router
from carteiro.schedules.declaring import Publish
from carteiro.schedules.specs import at, cron, every
from carteiro.schedules.status import Fired, ScheduleStatus
from carteiro.tasks.canvas import Signature, chain, chord, chunks, group
from carteiro.tasks.progress import set_progress
from carteiro.tasks.result import RunResult, TaskResult
from carteiro.tasks.steps import EventTimeout, step, wait_for
from carteiro.tasks.task import Task
from carteiro.tasks.unique import Unique

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
    "EventTimeout",
    "Fired",
    "HandlerFailed",
    "HandlerTimeout",
    "Header",
    "Idempotency",
    "InvalidBody",
    "InvalidHandler",
    "InvalidTopic",
    "Limit",
    "Logger",
    "Message",
    "NoHandler",
    "NoResult",
    "NotConnected",
    "Outgoing",
    "Path",
    "Publish",
    "Reject",
    "Reprocess",
    "RequestFailed",
    "RequestTimeout",
    "ResultTimeout",
    "ResultTooLarge",
    "Retry",
    "RetryLater",
    "Router",
    "RunResult",
    "ScheduleStatus",
    "Signature",
    "SoftTimeout",
    "Task",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TaskResult",
    "Topic",
    "Unencodable",
    "Unique",
    "UnknownBackend",
    "Unroutable",
    "UnsupportedFeature",
    "WorkerLost",
    "at",
    "chain",
    "chord",
    "chunks",
    "constant",
    "cron",
    "every",
    "exponential",
    "group",
    "set_progress",
    "step",
    "wait_for",
]
