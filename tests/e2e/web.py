"""A web service as it is deployed: uvicorn, as a process of its own, that a test asks over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx

from tests.servers.process import PATIENCE, ServerProcess, free_port, new_folder

SERVICE = """
import asyncio, os
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from carteiro import BrokerUnavailable, Carteiro, Retry
from carteiro.web import health

app = Carteiro("shop", {options})

@app.subscriber("orders", retry=Retry(attempts=1))
async def handle(order: int) -> None:
    if order < 0:
        raise ValueError(f"no order {{order}}")
    print("handled", order, flush=True)

api = FastAPI(lifespan={lifespan})
api.include_router(health(app))

@api.exception_handler(BrokerUnavailable)
async def away(request, error) -> JSONResponse:
    return JSONResponse({{"detail": str(error)}}, 503)

@api.post("/orders", status_code=202)
async def place(order: int, wait_for: str | None = None) -> None:
    print("placing", order, flush=True)
    while wait_for is not None and not os.path.exists(wait_for):
        await asyncio.sleep(0.01)
    await app.publish("orders", order)
"""


class WebService(ServerProcess):
    """An app with one queue, made with these options, behind `POST /orders` and its health."""

    def __init__(self, *options: str, lifespan: str = "app.lifespan") -> None:
        port = free_port()
        folder = new_folder("web")
        (Path(folder.name) / "service.py").write_text(SERVICE.format(options=", ".join(options), lifespan=lifespan))
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        uvicorn = [sys.executable, "-m", "uvicorn", "service:api", "--port", str(port), "--no-access-log"]
        super().__init__(
            f"the service on port {port}", folder, uvicorn, ready=self._answers, not_yet=httpx.TransportError
        )

    def close(self) -> None:
        self._client.close()
        super().close()

    def _answers(self) -> bool:
        return self._client.get("/health/live").status_code > 0

    @property
    def exit_code(self) -> int | None:
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def place(self, order: int, **parameters: str) -> int:
        """The status code of the answer."""
        return self._client.post("/orders", params={"order": order, **parameters}).status_code

    def probes(self) -> tuple[int, int]:
        """The codes of live and ready."""
        return self._client.get("/health/live").status_code, self._client.get("/health/ready").status_code

    def health(self) -> Any:
        return self._client.get("/health/queue").json()

    def until_health(self, *statuses: str) -> Any:
        """The whole answer, once its status is one of these."""
        found: Any = None

        def look() -> bool:
            nonlocal found
            found = self.health()
            return found["status"] in statuses

        self.until(look, " or ".join(statuses))
        return found

    def until_logged(self, text: str) -> None:
        self.until(lambda: text in self.log(1000), f"saying {text!r}")
