"""Every exception that carteiro raises to its users, and those that handlers raise to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta


class CarteiroError(Exception):
    """The base of all that carteiro raises."""


# -- what is declared wrongly: raised while the app is built or started --------------------------------------------


class ConfigurationError(CarteiroError):
    """An app, an option or a handler that cannot work as declared."""


class InvalidTopic(ConfigurationError):
    """A name that is no topic, or a pattern where a topic is needed."""


class InvalidHandler(ConfigurationError):
    """A handler whose signature or options cannot be compiled; names the handler, its place and the parameter."""


class UnsupportedFeature(ConfigurationError):
    """A handler needs what its broker lacks; names both."""


class UnknownBackend(ConfigurationError):
    """No installed backend serves this URL's scheme."""


# -- the broker ----------------------------------------------------------------------------------------------------


class BrokerError(CarteiroError):
    """The broker could not do what was asked. Nothing that it had accepted before is lost."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached or is locked, full or read-only. Trying again later can help."""


class CircuitOpen(BrokerUnavailable):
    """The broker has been away for so long that publishing to it is cut off: raised at once, instead of waiting.

    It says since when, why, and when the broker is tried again: `retry_after` seconds after it was raised.
    """

    def __init__(self, text: str = "", *, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class BrokerCorrupted(BrokerError):
    """The broker's data cannot be read. Trying again cannot help."""


class Unroutable(BrokerError):
    """A message published with `mandatory=True` that no group would get. It was not kept."""


class NotConnected(CarteiroError):
    """The app is used before it is started or after it was closed."""


# -- requests ------------------------------------------------------------------------------------------------------


class RequestTimeout(CarteiroError, TimeoutError):
    """No reply came in time. The request may still be handled."""


class RequestFailed(CarteiroError):
    """The handler of a request failed for good; the text is the remote error."""


# -- what a handler meets ------------------------------------------------------------------------------------------


class InvalidBody(CarteiroError):
    """A body that does not fit its handler: dead at once, with the validator's own words."""


class Unencodable(CarteiroError, TypeError):
    """A value that no body can be made of; names its type and where in the value it is."""


class NoHandler(CarteiroError):
    """A message of a type for which its subscription has no handler: dead at once."""


class HandlerTimeout(CarteiroError, TimeoutError):
    """A handler ran longer than its `timeout`."""


class HandlerFailed(CarteiroError):
    """What a handler raised in its thread or process, where that cannot be raised here; the text is the original's."""


class WorkerLost(CarteiroError):
    """An attempt whose worker died, or lost its lease, before it ended."""


# -- tasks ---------------------------------------------------------------------------------------------------------


class TaskFailed(CarteiroError):
    """A task failed for good with an error that cannot be raised here as it was; the text is the original's."""


class TaskCancelled(CarteiroError):
    """A task, or the run that it belongs to, was cancelled: it has no result and will have none."""


class TaskExpired(CarteiroError):
    """A task that had not begun when its `expires` was over."""


class ResultTimeout(CarteiroError, TimeoutError):
    """There was no result in time. The task may still end."""


class NoResult(CarteiroError):
    """There is no result: the task keeps none (`result=False`), or what a run's next task needs of it has expired."""


class ResultTooLarge(CarteiroError):
    """What a task returned is larger than the app's `result_size`; the text says where it should go instead."""


class SoftTimeout(CarteiroError, TimeoutError):
    """Raised within a task after its `soft_timeout`: it can still end in good order before its `timeout`."""


# -- what a handler raises to steer its delivery -------------------------------------------------------------------


class Reject(CarteiroError):
    """Raised by a handler: never retry, straight to the dead letters, with this text as the reason."""


class RetryLater(CarteiroError):
    """Raised by a handler: try this message again after `delay` (seconds, a timedelta or text such as `"5m"`).

    Without a delay the subscription's own backoff is used. Its attempts still count against the limit.
    """

    def __init__(self, reason: str = "", *, delay: float | timedelta | str | None = None) -> None:
        super().__init__(reason or "the handler asked for a retry")
        self.delay = delay


class BatchFailed(CarteiroError):
    """Raised by a batch handler: these items failed, by index; the others are done."""

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__(f"{len(errors)} of the batch failed")
        self.errors = dict(errors)

    def __reduce__(self) -> tuple[type[BatchFailed], tuple[dict[int, BaseException]]]:
        return type(self), (self.errors,)  # as it comes back from a handler in a process
