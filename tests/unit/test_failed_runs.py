"""What is left of a run that has failed, however long it waits."""

from __future__ import annotations

from carteiro import Carteiro, Retry, group
from carteiro.testing import TestApp


async def test_a_member_that_was_to_begin_days_later_does_not_begin_once_its_run_has_failed():
    app, began = Carteiro("shop", retry=Retry(attempts=1), result_ttl="1d"), list[int]()

    @app.task
    async def fail() -> None:
        raise ValueError("no")

    @app.task
    async def begin(number: int) -> None:
        began.append(number)

    async with TestApp(app) as t:
        run = await group(fail.s(), begin.s(7).set(countdown="3d")).delay()
        await t.advance(days=4)
        assert (await run.status(), began) == ("failed", [])
