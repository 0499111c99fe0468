from pydantic import BaseModel

from carteiro import Batch, BatchFailed, Carteiro

app = Carteiro("pace")


class Event(BaseModel):
    name: str


class Click(BaseModel):
    x: int
    y: int


class Change(BaseModel):
    account: str
    amount: int


balances: dict[str, int] = {}


@app.subscriber("events", concurrency=10, prefetch=50, rate_limit="100/m")
async def slow(event: Event) -> None: ...


@app.subscriber("clicks", batch=Batch(size=500, wait=0.5))
async def bulk(clicks: list[Click]) -> None:                 # raise BatchFailed({index: error}) to fail some only
    outside = {index: ValueError("off the screen") for index, click in enumerate(clicks) if click.x < 0}
    if outside:
        raise BatchFailed(outside)


@app.subscriber("accounts", ordered=True)                    # one at a time for each key, in order, across retries
async def apply(change: Change) -> None:
    balances[change.account] = balances.get(change.account, 0) + change.amount


@app.subscriber("thumbnails", runs_in="process")             # "loop", "thread" (sync default) or "process"
def thumbnail(path: str) -> None: ...
