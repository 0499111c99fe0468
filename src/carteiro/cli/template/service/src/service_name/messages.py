"""What travels: the bodies of messages, of requests and of answers."""

from typing import Annotated, Literal
from uuid import uuid4

from pydantic import BaseModel, Field, HttpUrl


class Command(BaseModel):
    id: str = Field(default_factory=lambda: uuid4().hex, min_length=1, max_length=64)
    """Two with the same id are one: a client that is in doubt may ask again."""
    user_id: int


class SendText(Command):
    type: Literal["send_text"] = "send_text"
    content: str = Field(min_length=1, max_length=4096)


class SendAudio(Command):
    type: Literal["send_audio"] = "send_audio"
    url: HttpUrl


AnyCommand = Annotated[SendText | SendAudio, Field(discriminator="type")]
"""What `user_channel` carries. `type` says which it is, and so which handler takes it."""


class Accepted(BaseModel):
    id: str


class Sent(BaseModel):
    """Published to `message_sent` when a message has reached its user."""

    id: str
    user_id: int


class UserStatus(BaseModel):
    user_id: int
    online: bool
