"""A retry policy that goes with one message, and what a task sees of its retries."""

from __future__ import annotations

from datetime import datetime

import msgspec

from carteiro.durations import seconds
from carteiro.errors import ConfigurationError, InvalidBody
from carteiro.message import Failure
from carteiro.policies.retry import Exponential, Retry


class RetryState(msgspec.Struct, frozen=True):
    """Where a task stands: this is attempt `attempt` of `attempts`; `failures` are those before, oldest first."""

    attempt: int
    attempts: int
    failures: tuple[Failure, ...]
    sent_at: datetime

    @property
    def is_last(self) -> bool:
        return self.attempt >= self.attempts

    @property
    def last_error(self) -> str | None:
        return self.failures[-1].error if self.failures else None


class _Sent(msgspec.Struct, frozen=True, omit_defaults=True):
    attempts: int
    base: float
    factor: float
    cap: float | None = None
    jitter: str | None = None
    max_age: float | None = None


def header_of(retry: Retry | int) -> str:
    """As the header `retry`. Raises ConfigurationError for a policy that is code: that cannot go with a message."""
    if type(retry) is int:
        retry = Retry(attempts=retry)
    if not isinstance(retry, Retry):
        raise ConfigurationError(f"retry={retry!r}: give Retry(attempts=…, backoff=…), or a number of attempts")
    backoff = retry.backoff
    if not isinstance(backoff, Exponential) or (retry.on, retry.not_on) != (_DEFAULT.on, _DEFAULT.not_on):
        raise ConfigurationError(
            "retry= of one call goes with its message: its backoff is exponential(…) or constant(…), and what it "
            "retries on is said by the task's own retry="
        )
    max_age = None if retry.max_age is None else seconds(retry.max_age)
    sent = _Sent(retry.attempts, backoff.base, backoff.factor, backoff.cap, backoff.jitter, max_age)
    return msgspec.json.encode(sent).decode()


def retry_of(header: str, own: Retry) -> Retry:
    """The policy of a message, with what its task says of errors. Raises InvalidBody."""
    try:
        sent = msgspec.json.decode(header, type=_Sent)
        backoff = Exponential(sent.base, sent.factor, sent.cap, sent.jitter)  # type: ignore[arg-type]
        return Retry(attempts=sent.attempts, backoff=backoff, on=own.on, not_on=own.not_on, max_age=sent.max_age)
    except (msgspec.DecodeError, ConfigurationError) as error:
        raise InvalidBody(f"the header retry: {error}") from error


_DEFAULT = Retry()
