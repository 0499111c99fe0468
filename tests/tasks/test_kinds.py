"""What a task can be and what it can ask for: as a handler, and still a function."""

import asyncio
import logging
import os
import pickle
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import pytest

from carteiro import (
    Carteiro,
    ConfigurationError,
    Depends,
    Emit,
    Header,
    InvalidHandler,
    Logger,
    Message,
    Router,
    Topic,
)
from tests.e2e.tour.stage import Stage, soon
from tests.tasks.things import ONCE, far, got, with_far


async def test_a_plain_function_runs_in_a_thread_and_an_async_one_on_the_loop(stage: Stage):
    app = stage.app()

    @app.task
    def plain() -> int:
        return threading.get_ident()

    @app.task
    async def on_loop() -> int:
        return threading.get_ident()

    @app.task(runs_in="loop")
    def asked_for() -> int:
        return threading.get_ident()

    await stage.run(app)

    assert await got(await plain.delay()) != threading.get_ident()
    assert await got(await on_loop.delay()) == threading.get_ident()
    assert await got(await asked_for.delay()) == threading.get_ident()


async def test_a_task_runs_in_a_process(stage: Stage):
    app = stage.app()
    with_far(app)
    await stage.run(app)

    assert await got(await app.tasks["pid"].delay()) != os.getpid()
    with pytest.raises(ValueError, match="no 7") as raised:
        await got(await app.tasks["refuses"].delay(7))
    assert "raise ValueError" in str(raised.value.__cause__)


async def test_a_function_that_was_imported_is_made_a_task_that_runs_in_a_process(stage: Stage):
    from tests.tasks.plain import double

    app = stage.app()
    task = app.task(runs_in="process")(double)
    await stage.run(app)

    assert await got(await task.delay(4)) == 8


def test_a_task_at_the_top_of_its_module_is_pickled_by_its_place():
    (pid,) = [task for task in far._tasks if task.name == "pid"]

    assert pickle.loads(pickle.dumps(pid)) is pid


async def test_a_task_that_no_process_can_import_is_refused_when_the_app_starts(stage: Stage):
    app = stage.app()

    @app.task(runs_in="process")
    def local() -> None: ...

    with pytest.raises(InvalidHandler, match="define it at module level"):
        await soon(app.run())


async def test_what_is_injected_is_no_argument(stage: Stage):
    app = stage.app()
    closed: list[str] = []

    async def session(message: Message) -> AsyncIterator[str]:
        yield f"session of {message.type}"
        closed.append("session")

    @app.task
    async def work(
        number: int,
        session: Annotated[str, Depends(session)],
        tenant: Annotated[str, Header("x-tenant")],
        message: Message,
        logger: Logger,
    ) -> dict[str, Any]:
        logger.info("at work on %d", number)
        return {"number": number, "session": session, "tenant": tenant, "id": message.id}

    wrong: Any = work
    await stage.run(app)
    result = await wrong.apply_async((7,), headers={"x-tenant": "br"})

    assert await got(result) == {"number": 7, "session": "session of work", "tenant": "br", "id": result.id}
    assert closed == ["session"]
    with pytest.raises(TypeError, match=r"work\(\) takes 1 argument but 2 were given"):
        await wrong.delay(7, "mine")
    with pytest.raises(TypeError, match="unexpected keyword argument 'logger'"):
        await wrong.delay(7, logger=logging.getLogger())


async def test_dependencies_of_a_task_can_be_replaced_in_tests(stage: Stage):
    app = stage.app()

    def price() -> int:
        return 100

    @app.task
    def work(price: Annotated[int, Depends(price)]) -> int:
        return price

    app.overrides[price] = lambda: 1
    await stage.run(app)

    assert await got(await work.delay()) == 1  # type: ignore[call-arg]


async def test_what_a_task_emits_is_published_if_it_succeeds(stage: Stage):
    app = stage.app()

    @app.task(retry=ONCE)
    async def work(fails: bool, sent: Annotated[Emit[str], Topic("work.done")]) -> int:
        sent("it is done")
        if fails:
            raise ValueError("no")
        return 7

    heard: asyncio.Queue[str] = asyncio.Queue()

    @app.subscriber("work.done")
    async def hear(text: str) -> None:
        heard.put_nowait(text)

    unchecked: Any = work
    await stage.run(app)
    with pytest.raises(ValueError, match="no"):
        await got(await unchecked.delay(True))

    assert await got(await unchecked.delay(False)) == 7
    assert await soon(heard.get()) == "it is done"
    await stage.settled("work.done")
    assert heard.empty()


async def test_middleware_of_the_app_the_router_and_the_task_wraps_it_in_this_order(stage: Stage):
    seen: list[str] = []

    def layer(name: str) -> Any:
        async def middleware(message: Message, call_next: Callable[[Message], Awaitable[Any]]) -> Any:
            seen.append(name)
            return await call_next(message)

        return middleware

    router = Router(middleware=[layer("router")])

    @router.task(middleware=[layer("task")])
    async def work() -> int:
        seen.append("work")
        return 7

    app = stage.app(middleware=[layer("app")])
    app.include(router)
    await stage.run(app)

    assert await got(await work.delay()) == 7
    assert seen == ["app", "router", "task", "work"]


async def test_what_middleware_returns_is_the_result(stage: Stage):
    app = stage.app()

    @app.middleware
    async def doubled(message: Message, call_next: Callable[[Message], Awaitable[Any]]) -> Any:
        return 2 * await call_next(message)

    @app.task
    async def work() -> int:
        return 7

    await stage.run(app)

    assert await got(await work.delay()) == 14


async def test_a_task_of_a_router_belongs_to_the_app_that_includes_it(stage: Stage):
    router, app, other = Router(prefix="ignored."), stage.app(), stage.app("other")

    @router.task(queue="slow")
    async def work() -> int:
        return 7

    app.include(router)
    await stage.run(app)

    assert await got(await work.delay()) == 7
    with pytest.raises(ConfigurationError, match="`work` is in two apps"):
        other.include(router)


async def test_tasks_send_tasks_and_wait_for_them(stage: Stage):
    app = stage.app()

    @app.task
    async def inner(number: int, message: Message) -> list[Any]:
        return [number * 2, message.correlation_id]

    @app.task
    async def outer(message: Message) -> bool:
        unchecked: Any = inner
        result = await (await unchecked.delay(4)).get(timeout=20)
        return bool(result == [8, message.correlation_id])

    await stage.run(app)
    unchecked: Any = outer

    assert await got(await unchecked.delay()) is True


async def test_handlers_and_tasks_live_in_one_app(stage: Stage):
    app = stage.app()

    @app.task
    async def work(number: int) -> int:
        return number * 2

    @app.subscriber("numbers")
    async def hear(number: int) -> int:
        return await (await work.delay(number)).get(timeout=20)

    await stage.run(app)

    assert await app.request("numbers", 21) == 42


@pytest.mark.parametrize("decorate", ["bare", "called"])
async def test_a_task_is_called_as_the_function_it_is(decorate: str):
    app = Carteiro("shop", "memory://")

    async def add(a: int, b: int = 1) -> int:
        return a + b

    task = app.task(add) if decorate == "bare" else app.task(timeout=60)(add)

    assert await task(1) == 2
    assert await task(a=1, b=2) == 3
    assert repr(task) == "<task add>"


async def test_a_function_that_can_be_no_task_is_refused(stage: Stage):
    app = stage.app()

    @app.task
    async def work(*numbers: int) -> None: ...

    async with stage.app() as other:
        assert other is not None
        with pytest.raises(InvalidHandler, match="`numbers` takes any number of arguments"):
            await work.delay(1)
    with pytest.raises(InvalidHandler, match="`numbers` takes any number of arguments"):
        await soon(app.run())


async def test_a_task_in_a_process_that_says_how_far_it_is_hears_that_it_cannot(stage: Stage):
    app = stage.app()
    with_far(app)
    await stage.run(app)

    with pytest.raises(ConfigurationError, match=r"within a task, while it runs on a worker's loop or in its threads"):
        await got(await app.tasks["tells"].delay())
