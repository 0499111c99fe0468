"""What the health routes answer, as OpenAPI shows it. Ages are seconds, times are UTC; null is what nobody can tell."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

Status = Literal["up", "degraded", "down"]

Reasons = Annotated[list[str], Field(description="Why it is not `up`; empty where it is.")]
Seconds = Annotated[float | None, Field(ge=0)]


class Depth(BaseModel):
    """How many messages a group has, by what they wait for. RabbitMQ tells of those that wait and of the dead only."""

    waiting: int | None = Field(default=None, description="Ready to be handled now.", examples=[3])
    delayed: int | None = Field(default=None, description="Not due yet, or behind another of their key.", examples=[0])
    retrying: int | None = Field(default=None, description="Failed, and not due yet.", examples=[1])
    in_flight: int | None = Field(default=None, description="Held by a worker of any process.", examples=[2])
    dead: int | None = Field(default=None, description="Given up on: `carteiro dlq list`.", examples=[0])


class LastError(BaseModel):
    """The last attempt of this process that failed, however long ago."""

    type: str = Field(examples=["PaymentDown"])
    text: str = Field(examples=["the bank does not answer"])
    attempt: int = Field(examples=[2])
    at: datetime


class QueueHealth(BaseModel):
    """One topic and group.

    - `up`: messages go their way.
    - `degraded`: they wait though they could be handled, or what is published is kept for later or reaches nobody.
    - `down`: nothing is consumed, or nothing can be published.
    """

    topic: str = Field(examples=["orders.placed"])
    group: str | None = Field(description="Null where no group is known.", examples=["shop"])
    broker: str = Field(description="The app's name for it; see `brokers`.", examples=["default"])
    system: str = Field(examples=["redis"])
    status: Status
    reasons: Reasons
    consumes: bool = Field(description="Whether this process handles its messages; else others do.")
    depth: Depth
    consumers: int | None = Field(description="Processes that consume it, as far as the broker knows.", examples=[4])
    oldest: Seconds = Field(default=None, description="Age of the oldest message that is not done.", examples=[0.8])
    handling: int | None = Field(default=None, description="Held by this process now.", examples=[2])
    handled: int | None = Field(default=None, description="Attempts that ended in this process.", examples=[1207])
    last_handled: datetime | None = Field(default=None, description="When the last of them ended.")
    last_error: LastError | None = None


class BreakerHealth(BaseModel):
    """The circuit breaker around publishing: `closed` is well."""

    state: Literal["closed", "open", "half-open"]
    since: datetime
    failures: int = Field(description="Tries that failed since the last one that succeeded.")
    last_error: str | None
    last_error_at: datetime | None
    next_try: datetime | None = Field(description="When the broker is tried again, while it is open.")


class OutboxHealth(BaseModel):
    """What was published while the broker was away, and is forwarded when it is back."""

    waiting: int
    oldest: Seconds = Field(default=None)
    refused: int = Field(description="What the broker does not take, and is tried again at the next start.")


class BrokerHealth(BaseModel):
    """One broker of the app, as this process sees it."""

    name: str = Field(examples=["default"])
    system: str = Field(examples=["redis"])
    status: Status
    reasons: Reasons
    seen_at: datetime | None = Field(description="When it answered last: the counts are of then.")
    trouble: str | None = Field(description="Why nothing comes in from it, while that is so.")
    breaker: BreakerHealth | None
    outbox: OutboxHealth | None


class Health(BaseModel):
    """A service and all of its queues."""

    app: str = Field(examples=["shop"])
    status: Status = Field(description="`down`: of no use now; `degraded`: it does a part of its work.")
    reasons: Reasons
    brokers: list[BrokerHealth]
    queues: list[QueueHealth]


class Probe(BaseModel):
    """A short answer, for an orchestrator."""

    status: Status
    reasons: Reasons
