"""The service over HTTP: a file is taken, and what becomes of it can be followed, stopped and fetched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from carteiro import BrokerUnavailable
from examples.video import shelf
from examples.video.app import app
from examples.video.standing import Video, changes, standing
from examples.video.upload import NotTaken, Upload, check_size, take
from examples.video.work import workflow

routes = APIRouter()
PAGE = Path(__file__).with_name("page.html")

Id = Annotated[str, InPath(pattern="^[0-9a-f]{12}$")]


@routes.post("/videos", status_code=202)
async def upload(
    request: Request,
    response: Response,
    name: Annotated[str, Query(min_length=1, max_length=200)] = "video",
    email: Annotated[str | None, Query(pattern=r"^[^@\s]+@[^@\s]+$", max_length=200)] = None,
) -> dict[str, str]:
    """The body is the file. Returns once it is on the disk and the broker has the work safe."""
    check_size(request.headers.get("content-length"))
    video = shelf.add()
    try:
        length = await take(video, request.stream())
        about = Upload(id=video, name=name, email=email, bytes=length, at=app.clock.time())
        shelf.put(video, "upload.json", about)
        run = await workflow(video).delay()
    except BaseException:
        shelf.remove(video)
        raise
    shelf.put(video, "run", run.id)
    response.headers["location"] = f"/videos/{video}"
    return {"id": video}


@routes.get("/videos")
async def latest(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> list[Video]:
    found = [await standing(video) for video in shelf.videos()[:limit]]
    return [video for video in found if video is not None]


@routes.get("/videos/{video}")
async def show(video: Id) -> Video:
    """How it stands: its state, and how far each step is."""
    found = await standing(video)
    if found is None:
        raise HTTPException(404, f"there is no video `{video}`")
    return found


@routes.get("/videos/{video}/events", response_class=StreamingResponse)
async def follow(video: Id) -> StreamingResponse:
    """The same whenever it changes, as server-sent events: `video` each time, and `over` at the end."""
    await show(video)
    return StreamingResponse(_events(video), media_type="text/event-stream", headers={"cache-control": "no-store"})


@routes.delete("/videos/{video}")
async def cancel(video: Id) -> Video:
    """Stop working on it, for good: encoders that run are killed, and what has not begun will not."""
    run = shelf.read(video, "run") if (found := await show(video)).state == "processing" else None
    if run is None or not await app.tasks.run(run).cancel():
        raise HTTPException(409, f"`{video}` is {found.state}: there is nothing to stop")
    return await show(video)


@routes.get("/videos/{video}/files/{name}")
async def fetch(video: Id, name: str) -> FileResponse:
    """A rendition or a thumbnail of a video that is published; parts of it too, so that players can seek."""
    found = await show(video)
    if name not in (*(one.file for one in found.renditions), *found.thumbnails):
        raise HTTPException(404, f"`{video}` has no file `{name}`; it is {found.state}")
    return FileResponse(shelf.file(video, name))


@routes.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(PAGE)


async def _events(video: str) -> AsyncIterator[str]:
    async for one in changes(video):
        yield f"event: video\ndata: {one.model_dump_json()}\n\n"
    yield "event: over\ndata:\n\n"


async def _not_taken(request: Request, error: Any) -> JSONResponse:
    # The rest of the body is not read: a client that goes on sending would take it for the next request.
    return JSONResponse({"detail": str(error)}, error.status, headers={"connection": "close"})


async def _away(request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, headers={"retry-after": "5"})


def service(*, workers: bool = True) -> FastAPI:
    """The web service; with `workers` the work is done in the same process."""

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        async with app.lifespan(api, workers=workers):
            yield

    api = FastAPI(title="Videos", lifespan=lifespan)
    api.include_router(routes)
    api.add_exception_handler(NotTaken, _not_taken)
    api.add_exception_handler(BrokerUnavailable, _away)
    return api
