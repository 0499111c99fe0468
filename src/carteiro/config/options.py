"""What a queue's entry may say besides where the queue is: the models that the file is checked against.

A model's fields are the keys, its descriptions are what an editor shows. Values come as text.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from carteiro import durations
from carteiro.errors import ConfigurationError
from carteiro.policies import retry as policies
from carteiro.policies.rate import Rate
from carteiro.policies.reprocess import Reprocess
from carteiro.topics import check_topic


def wrong(text: str, *, key: str = "") -> PydanticCustomError:
    """An error in our own words, at `key` of the model that raises it."""
    return PydanticCustomError("ours", "{text}", {"text": text, "key": key})


def _seconds(value: Any) -> float:
    try:
        return durations.seconds(float(value) if _is_number(value) else value)
    except ConfigurationError:
        raise wrong("is no length of time: write 30s, 10m, 1h30m, 7d, or a number of seconds") from None


def _is_number(value: object) -> bool:
    return isinstance(value, str) and value.replace(".", "", 1).isdecimal()


def _over_zero(value: float) -> float:
    if value <= 0:
        raise wrong("must be over 0 seconds")
    return value


def _topic(name: str) -> str:
    try:
        return check_topic(name)
    except ConfigurationError as error:
        raise wrong(f"cannot be a queue's name: {error}") from None


def _rate(text: str) -> str:
    try:
        Rate.parse(text)
    except ConfigurationError:
        raise wrong("is no rate limit: write 100/m, 10/s, 5/10s or 1000/h") from None
    return text


_LENGTH = {"type": ["number", "string"], "examples": ["30s", "10m", "7d"]}
Length: TypeAlias = Annotated[float, BeforeValidator(_seconds), WithJsonSchema(_LENGTH)]
PositiveLength: TypeAlias = Annotated[Length, AfterValidator(_over_zero)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A table of the file. `example` shows how one is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)
    example: ClassVar[str] = ""


class Backoff(Part):
    """How long a failed message waits before it is tried again."""

    example = "backoff: {kind: exponential, base: 1s, cap: 1m}"

    kind: Literal["exponential", "constant"] = "exponential"
    """`exponential` doubles the wait with each failure, `constant` keeps it."""
    base: Length = 1.0
    """The wait after the first failure."""
    factor: Annotated[float, Field(ge=1)] | None = None
    """What an exponential wait is multiplied by each time; 2 if nothing is said."""
    cap: PositiveLength | None = None
    """The longest wait of an exponential backoff; one minute if nothing is said."""
    jitter: Literal["full", "equal", "none"] | None = None
    """Spreads retries that would come together: over all of the wait (`full`), or over its second half (`equal`)."""

    @model_validator(mode="after")
    def _fits(self) -> Backoff:
        if self.kind == "exponential" and self.base == 0:
            raise wrong("must be over 0 seconds where the backoff is exponential", key="base")
        for key in ("cap", "factor"):
            if self.kind == "constant" and getattr(self, key) is not None:
                raise wrong("is for an exponential backoff, and this one is constant: drop one of them", key=key)
        return self

    def policy(self) -> policies.Backoff:
        jitter = None if self.jitter == "none" else self.jitter
        if self.kind == "constant":
            return policies.constant(self.base, jitter=jitter)
        return policies.exponential(
            self.base,
            factor=self.factor or 2.0,
            cap=60.0 if self.cap is None else self.cap,
            jitter="full" if self.jitter is None else jitter,
        )


class Retry(Part):
    """How often and for how long a failed message is tried again."""

    example = "retry: {attempts: 5}"

    attempts: Count = 5
    """How often at most; the first attempt counts."""
    backoff: Backoff | None = None
    """The waits between attempts; exponential from 1 s to 1 min if nothing is said."""
    max_age: PositiveLength | None = None
    """Not tried again so long after it was published."""

    def policy(self) -> policies.Retry:
        backoff = self.backoff or Backoff()
        return policies.Retry(attempts=self.attempts, backoff=backoff.policy(), max_age=self.max_age)


class DeadLetters(Part):
    """What becomes of dead letters by itself."""

    example = "dlq: {reprocess_every: 10m, limit: 3}"

    reprocess_every: PositiveLength
    """A dead letter is sent back to its group when it has been dead for so long."""
    limit: Count = 3
    """How often it is sent back at most."""

    def policy(self) -> Reprocess:
        return Reprocess(self.reprocess_every, self.limit)


class QueueOptions(Part):
    """What every queue may say, whatever system it is on. Subscribers fill in from here what they leave open."""

    name: Annotated[str, AfterValidator(_topic)]
    """What subscribers and publishers call it: a topic, as in `user_channel` or `orders.placed`."""
    enable_consumer: bool = True
    """Whether this service handles its messages."""
    enable_publisher: bool = True
    """Whether this service may publish to it."""
    enable_dlq: bool = True
    """Whether what fails for good is kept as a dead letter; else it is dropped, with an error in the log."""
    dlq: DeadLetters | None = None
    """How dead letters are tried again by themselves."""
    retry: Retry | None = None
    """How often and for how long a failed message is tried again."""
    timeout: PositiveLength | None = None
    """How long one attempt may run."""
    concurrency: Count | None = None
    """How many messages one process handles at once."""
    prefetch: Annotated[int, Field(ge=0)] | None = None
    """How many more it holds ready; it follows the pace if nothing is said."""
    rate_limit: Annotated[str, AfterValidator(_rate)] | None = None
    """How many messages are handled at most, by all workers together, as in `100/m`."""
    lease: PositiveLength | None = None
    """How long a worker that says nothing keeps a message."""

    @model_validator(mode="after")
    def _has_what_it_reprocesses(self) -> QueueOptions:
        if self.dlq is not None and not self.enable_dlq:
            raise wrong("needs dead letters, and enable_dlq is false: drop one of them", key="dlq")
        return self

    def policies(self) -> dict[str, Any]:
        """What a subscriber is given where it leaves that open, by the names of its own options."""
        given: dict[str, Any] = {
            "retry": None if self.retry is None else self.retry.policy(),
            "timeout": self.timeout,
            "concurrency": self.concurrency,
            "prefetch": self.prefetch,
            "rate": None if self.rate_limit is None else Rate.parse(self.rate_limit),
            "lease": self.lease,
            "dead_letters": None if self.enable_dlq else False,
            "reprocess": None if self.dlq is None else self.dlq.policy(),
        }
        return {name: value for name, value in given.items() if value is not None}


def _app_name(name: str) -> str:
    if not name or any(letter.isspace() for letter in name):
        raise wrong("is no app's name: it has no spaces, for it is the default group of the subscribers")
    return name


def _store_url(url: SecretStr) -> SecretStr:
    if "://" not in url.get_secret_value():
        raise wrong("is a URL, such as sqlite:///state.db or redis://host")
    return url


class Service(Part):
    """The top of the file, besides `queues` and `defaults`."""

    app: Annotated[str, AfterValidator(_app_name)] | None = None
    """The app's name, the default group of its subscribers; if nothing is said, the file's without its suffix."""
    store: Annotated[SecretStr, AfterValidator(_store_url)] | None = None
    """The URL of a store, for brokers that keep no state of their own."""
