"""What type checkers know of tasks. Nothing runs here: `test_typing.py` has mypy and pyright read it.

What they are to refuse is marked `type: ignore`, which both of them report where there is nothing to ignore.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Coroutine
from typing import Any, assert_type

from carteiro import Carteiro, Retry, Router, Task, TaskResult, step

app = Carteiro("shop")
router = Router()


@app.task
async def bare(number: int, text: str = "") -> list[str]:
    return [text] * number


@app.task(retry=Retry(attempts=3), timeout="1m", unique=True)
async def called(number: int, *, text: str) -> dict[str, int]:
    return {text: number}


@app.task
def plain(number: int) -> bytes:
    return bytes(number)


@router.task(runs_in="process")
def in_process(number: int) -> float:
    return number / 2


@router.task()
async def nothing() -> None: ...


async def sending() -> None:
    assert_type(await bare.delay(1, "a"), TaskResult[list[str]])
    assert_type(await (await bare.delay(1)).get(timeout=10), list[str])
    assert_type(await (await called.delay(1, text="a")).get(), dict[str, int])
    assert_type(await (await plain.delay(1)).get(), bytes)
    assert_type(await (await in_process.delay(number=1)).get(), float)
    assert_type(await (await nothing.delay()).get(), None)
    assert_type(await (await bare.apply_async((1,), countdown=5, priority="high")).get(), list[str])
    assert_type(bare.delay_sync(1).get_sync(), list[str])
    assert_type(called.apply_sync(kwargs={"number": 1, "text": "a"}).get_sync(), dict[str, int])


async def calling() -> None:
    assert_type(await bare(1), list[str])
    assert_type(await called(1, text="a"), dict[str, int])
    assert_type(plain(1), bytes)
    assert_type(in_process(1), float)


def kinds(a: Task[[int], bytes, bytes], b: Task[[], Coroutine[Any, Any, None], None]) -> None: ...


kinds(plain, nothing)


async def charge(order: int) -> dict[str, int]:
    return {"order": order}


async def steps() -> None:
    assert_type(await step("charge", charge, 1), dict[str, int])
    assert_type(await step("plain", plain, 1), bytes)
    assert_type(await step("length", len, "abc"), int)
    await step("charge", charge, "one")  # type: ignore[call-overload]


async def refused() -> None:
    await bare.delay("one")  # type: ignore[arg-type]
    await bare.delay()  # type: ignore[call-arg]
    await bare.delay(1, "a", 2)  # type: ignore[call-arg]
    await called.delay(1, txt="a")  # type: ignore[call-arg]
    plain.delay_sync(text="a")  # type: ignore[call-arg]
    plain("one")  # type: ignore[arg-type]
    await bare.apply_async((1,), colour="red")  # type: ignore[call-arg]
    await bare.apply_async((1,), priority="urgent")  # type: ignore[arg-type]
    app.task(retires=3)  # type: ignore[call-overload]
    number: int = await (await bare.delay(1)).get()  # type: ignore[assignment]
    print(number)
