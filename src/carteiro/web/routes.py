"""The three routes: for FastAPI, which documents them, and for Starlette and what builds on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from carteiro.app import Carteiro
from carteiro.durations import Duration, seconds
from carteiro.errors import ConfigurationError, NotConnected
from carteiro.web.judging import alive, judged, not_at_work, unseen
from carteiro.web.models import Health, Probe
from carteiro.web.watch import Watch

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.responses import Response
    from starlette.routing import Route

STUCK_AFTER: Final = 30.0


class Question(NamedTuple):
    """One route: what it answers, as which model."""

    path: str
    model: type[Health] | type[Probe]
    summary: str
    ask: Callable[[], Awaitable[Health | Probe]]


def health(app: Carteiro, *, stuck_after: Duration = STUCK_AFTER) -> APIRouter:
    """For `api.include_router(health(app))`: `GET /health/queue`, `/health/live` and `/health/ready`.

    Each answers 200 or, where its status is `down`, 503. A queue is stuck, and so `degraded`, once its messages have
    waited for `stuck_after` with room for them and none has come in. Raises ConfigurationError without FastAPI.
    """
    try:
        from fastapi import APIRouter
    except ImportError as error:
        raise ConfigurationError(
            "health(app) makes routes for FastAPI, which is not installed: `pip install 'carteiro[web]'`; for "
            "Starlette there is health_routes(app)"
        ) from error
    router = APIRouter(tags=["health"])
    for question in _questions(app, seconds(stuck_after)):
        router.add_api_route(
            question.path,
            _answering(question),
            name=question.path.strip("/").replace("/", "_"),
            summary=question.summary,
            response_model=question.model,
            response_description="Up or degraded.",
            responses={503: {"model": question.model, "description": "Down: the reasons say why."}},
        )
    return router


def health_routes(app: Carteiro, *, stuck_after: Duration = STUCK_AFTER) -> list[Route]:
    """The routes of `health` for Starlette: `Starlette(routes=[*health_routes(app), …], lifespan=app.lifespan)`."""
    return [_route(question) for question in _questions(app, seconds(stuck_after))]


def _route(question: Question) -> Route:
    from starlette.routing import Route

    answer = _answering(question)

    async def endpoint(request: Any) -> Response:
        return await answer()

    return Route(question.path, endpoint)


def _answering(question: Question) -> Callable[[], Awaitable[Response]]:
    from starlette.responses import Response as Answer

    async def answer() -> Any:  # FastAPI would look for the class `Response` where it is not
        found = await question.ask()
        return Answer(
            found.model_dump_json(indent=2),
            503 if found.status == "down" else 200,
            {"cache-control": "no-store"},
            "application/json",
        )

    return answer


def _questions(app: Carteiro, stuck_after: float) -> list[Question]:
    watch = Watch(app)

    async def queue() -> Health:
        try:
            sights = await watch.look()
            return judged(app, watch, sights, stuck_after)
        except NotConnected as error:  # or it was closed meanwhile
            return unseen(app, error)

    async def live() -> Probe:
        return alive(app.life)

    async def ready() -> Probe:
        idle = not_at_work(app.life)
        if idle is not None:
            return Probe(status="down", reasons=[idle])
        found = await queue()
        return Probe(status=found.status, reasons=found.reasons)

    return [
        Question("/health/queue", Health, "Each queue: its status, depth, consumers, oldest age and last error", queue),
        Question("/health/live", Probe, "Whether the process can go on; no broker has a part in it", live),
        Question("/health/ready", Probe, "Whether the service is worth sending requests to", ready),
    ]
