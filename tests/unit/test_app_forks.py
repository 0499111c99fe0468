"""An app in a process that forks, as a web server that loads it before it starts its workers does."""

import subprocess
import sys
import textwrap
from pathlib import Path


def run(path: Path, body: str) -> str:
    """What the script prints; a child of it that hangs fails it."""
    path.write_text(textwrap.dedent(body))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parent_and_child_both_publish_after_a_fork(tmp_path: Path):
    printed = run(
        tmp_path / "shop.py",
        """
        import asyncio
        import os
        import sys
        from carteiro import Carteiro

        app = Carteiro("shop", "sqlite:///shop.db")

        @app.subscriber("orders")
        async def handle(order: int) -> None: ...

        async def waiting() -> int:
            async with app:
                (group,) = await app.connection.broker.groups()
                return group.waiting

        app.publish_sync("orders", 1)
        child = os.fork()
        app.publish_sync("orders", 2)
        if not child:
            sys.exit()  # through what is registered to run at exit, in the parent too
        assert os.waitpid(child, 0)[1] == 0
        app.publish_sync("orders", 3)
        print(asyncio.run(waiting()))
        """,
    )

    assert printed == "4\n"


def test_each_process_of_a_fork_has_its_own_copy_of_a_broadcast(tmp_path: Path):
    printed = run(
        tmp_path / "shop.py",
        """
        import os
        from carteiro import Carteiro

        app = Carteiro("shop", "sqlite:///shop.db")

        @app.subscriber("prices.changed", group=None)
        async def forget(sku: str) -> None: ...

        def group() -> str:
            (subscription,) = app.declared()
            return subscription.group

        before = group()
        child = os.fork()
        if not child:
            os._exit(group() == before)
        print(group() == before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1)
        """,
    )

    assert printed == "True False\n"
