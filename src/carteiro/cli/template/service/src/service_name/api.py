"""The web service: what clients ask for becomes messages."""

from functools import partial

from carteiro import BrokerUnavailable, RequestTimeout
from carteiro.web import health
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from service_name.app import app
from service_name.messages import Accepted, AnyCommand, UserStatus
from service_name.settings import settings

api = FastAPI(title=app.name, lifespan=partial(app.lifespan, workers=settings.consume))
api.include_router(health(app))


@api.post("/messages", status_code=202)
async def send(command: AnyCommand) -> Accepted:
    """Answers when the message is safe in the broker; a worker sends it."""
    await app.publish("user_channel", command)
    return Accepted(id=command.id)


@api.get("/users/{user_id}/status")
async def status(user_id: int) -> UserStatus:
    """Asks a worker, and waits for its reply."""
    reply: UserStatus = await app.request("user_status", user_id, returns=UserStatus, timeout="5s")
    return reply


@api.exception_handler(BrokerUnavailable)
async def broker_unavailable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the broker is away"}, status_code=503, headers={"Retry-After": "5"})


@api.exception_handler(RequestTimeout)
async def no_reply(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "no worker has answered in time"}, status_code=504)
