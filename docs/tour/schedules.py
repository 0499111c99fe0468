import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from carteiro import Carteiro, at, cron, every

app = Carteiro("house")


@dataclass
class Reading:
    sensor: str
    celsius: float = 21.5


async def sensors() -> list[str]:
    return ["hall", "roof"]


@app.task
async def cleanup() -> None:
    print("cleaned up")


@app.task
async def send_email(user: str) -> None:
    print(f"your trial has ended, {user}")


app.schedule("cleanup", cron("0 2 * * *", tz="America/Sao_Paulo"), cleanup.s())


@app.scheduled(cron("*/5 * * * *"), to="periodic")
async def readings():                       # what is returned, or each thing yielded, is published
    for sensor in await sensors():
        yield Reading(sensor)


@app.scheduled(every(seconds=1), to="ticks")
def tick() -> str: return "tick"


@app.subscriber("periodic")
async def keep(reading: Reading) -> None:
    print(reading)


@app.subscriber("ticks")
async def hear(text: str) -> None:
    print(text)


when = datetime.now(UTC) + timedelta(seconds=3)
user = "Ana"


async def while_running() -> None:
    await app.schedules.add("trial-ends", at(when), send_email.s(user))        # while running; list, pause, remove
    for schedule in await app.schedules.list():
        print(schedule.name, "|", schedule.spec, "|", schedule.next)


async def main() -> None:
    async with app:                         # beside a worker: `carteiro run schedules:app`
        await while_running()


if __name__ == "__main__":
    asyncio.run(main())
