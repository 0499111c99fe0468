"""What is done with each message. How often it is tried again, and what becomes of it then, is in queues.yaml."""

from typing import Annotated

from carteiro import Depends, Idempotency, Logger, Router

from service_name.gateway import Gateway, get_gateway
from service_name.messages import SendAudio, SendText, Sent, UserStatus

router = Router()

UserGateway = Annotated[Gateway, Depends(get_gateway)]
ONCE = Idempotency(key="id", ttl="1d")


@router.subscriber("user_channel", type="send_text", idempotency=ONCE)
@router.publisher("message_sent")
async def send_text(text: SendText, gateway: UserGateway) -> Sent:
    await gateway.send(text.user_id, text.content)
    return Sent(id=text.id, user_id=text.user_id)  # published if and only if the message is acked


@router.subscriber("user_channel", type="send_audio", idempotency=ONCE)
@router.publisher("message_sent")
async def send_audio(audio: SendAudio, gateway: UserGateway) -> Sent:
    await gateway.send(audio.user_id, f"listen: {audio.url}")
    return Sent(id=audio.id, user_id=audio.user_id)


@router.subscriber("message_sent")
async def record(sent: Sent, logger: Logger) -> None:
    logger.info("message %s has reached user %d", sent.id, sent.user_id)


@router.subscriber("user_status")
async def user_status(user_id: int, gateway: UserGateway) -> UserStatus:
    online = await gateway.is_online(user_id)
    return UserStatus(user_id=user_id, online=online)  # the reply to whoever asked
