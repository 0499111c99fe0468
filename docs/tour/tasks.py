import asyncio

from carteiro import Carteiro, Retry, chain, chord, exponential, group

app = Carteiro("videos")


@app.task(retry=Retry(attempts=3, backoff=exponential(2)), timeout=60, rate_limit="100/m")
async def process_video(video_id: int) -> str:
    return f"video {video_id}"


@app.task
async def download(url: str) -> str:
    return url.rpartition("/")[2]


@app.task
def encode(file: str, size: str) -> str:
    return f"{file} at {size}"


@app.task
async def upload(file: str) -> str:
    return f"https://cdn.example/{file}"


@app.task
async def aggregate(videos: list[str]) -> int:
    return len(videos)


@app.task
async def publish_video(files: list[str]) -> str:
    return " and ".join(files)


url = "https://example.com/beach.mov"


async def one_task() -> None:
    result = await process_video.delay(123)
    print(await result.get(timeout=10))         # result.status(), result.cancel(), result.progress()
    await process_video.apply_async(args=(123,), countdown=60, queue="slow", unique=True)


def without_a_loop() -> None:
    process_video.delay_sync(123)               # from code that has no event loop


async def workflows() -> None:
    runs = [
        await chain(download.s(url), encode.s("720p"), upload.s()).delay(),
        await group(process_video.s(i) for i in range(10)).delay(),
        await chord((process_video.s(i) for i in range(10)), aggregate.s()).delay(),
        await (download.s(url) | group(encode.s("720p"), encode.s("1080p")) | publish_video.s()).delay(),
    ]
    for run in runs:
        print(await run.get(timeout=60))        # twenty at 100 a minute


async def main() -> None:
    async with app:                             # beside a worker: `carteiro run tasks:app`
        await one_task()
        await workflows()


if __name__ == "__main__":
    asyncio.run(main())
    without_a_loop()
