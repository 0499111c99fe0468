"""`python -m examples.shop.demo`: a day's orders go through the shop, and each one is accounted for.

The shop is opened as a process of its own in an empty directory, on a broker that is not in use. The lines of
`orders.jsonl` are published as they are, also those that are no orders. The demo listens, as a group like any other,
for what ends an order; when it has heard of each, it draws up the account from the departments' books and the dead
letters.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from rich.console import Console

from carteiro import Carteiro, CarteiroError
from carteiro.brokers import EMBEDDED
from carteiro.message import DeadLetter
from carteiro.ports.broker import GroupStatus, Inspector
from examples.shop.audit import Account, Line, draw_up, ends_in_dead_letters, ends_in_the_books
from examples.shop.ends import Ends
from examples.shop.make_orders import FILE
from examples.shop.report import ShowProgress, as_json, as_table, bystander, faults, progress
from examples.shop.shop_process import ShopFailed, ShopProcess


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(stderr=options.json)
    try:
        texts = options.orders.read_text(encoding="utf-8").splitlines()
        with _directory(options.keep):
            return asyncio.run(_demonstrate(options, texts, console))
    except (CarteiroError, ShopFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _demonstrate(options: argparse.Namespace, texts: Sequence[str], console: Console) -> int:
    started = perf_counter()
    without = [argument for group in options.without for argument in ("--without", group)]
    lease = {"SHOP_LEASE": "3"} if options.kill else {}
    shop = ShopProcess(["--quiet", *without], {"CARTEIRO_BROKER": options.broker, **lease})
    await _must_be_empty(options.broker)
    ends = Ends(options.broker)
    async with ends.listening():
        await shop.open()
        try:
            console.print(f"the shop is open at {shop.address}")
            lines = await _place(ends, texts)
            with progress(console, len(lines)) as show:
                await _all_ended(ends, lines, shop, options, show)
            letters, newsletter = await _look(ends)
        finally:
            await shop.close()
    account = await _account(lines, letters)
    if options.json:
        print(json.dumps(as_json(account, perf_counter() - started), ensure_ascii=False, indent=2))
    else:
        console.print(as_table(account))
        if "newsletter" not in options.without:
            console.print(bystander(newsletter))
    for fault in faults(account):
        print(fault, file=sys.stderr)
    return 0 if account.balanced else 1


async def _must_be_empty(broker: str) -> None:
    async with Carteiro("audit", broker=broker) as app:
        inspector = app.connection.broker
        assert isinstance(inspector, Inspector)
        if await inspector.groups() or await inspector.dead_letters():
            raise ShopFailed(
                "the broker is in use: the account would be of more than one day; name another, or another prefix"
            )


async def _place(ends: Ends, texts: Sequence[str]) -> list[Line]:
    """Publish the lines as they are: whether they are orders is for those to say who read them."""
    ids = await ends.app.publish_many(
        "orders.placed", [text.encode() for text in texts], headers={"content-type": "application/json"}
    )
    return [Line(number, text, message_id) for number, (text, message_id) in enumerate(zip(texts, ids, strict=True), 1)]


async def _all_ended(
    ends: Ends, lines: Sequence[Line], shop: ShopProcess, options: argparse.Namespace, show: ShowProgress
) -> None:
    """Return when all have ended, or when nothing has for as long as the patience lasts: the account will say which.

    With `--kill`, the shop's process is killed when a third has ended, and opened again.
    """
    wanted = {line.message_id for line in lines}
    to_kill = options.kill
    while missing := ends.missing(wanted):
        show(len(wanted) - missing)
        if to_kill and missing < len(wanted) * 2 / 3:
            to_kill = False
            await shop.kill()
            await shop.open()
            continue
        ends.news.clear()
        news = asyncio.ensure_future(ends.news.wait())
        await asyncio.wait((news, shop.closed), timeout=options.patience, return_when=asyncio.FIRST_COMPLETED)
        if shop.closed.done():
            raise shop.failure()
        if not news.done():
            news.cancel()
            return
    show(len(wanted))


async def _look(ends: Ends) -> tuple[Sequence[DeadLetter], GroupStatus]:
    """The dead letters, and how the newsletter stands."""
    inspector = ends.app.connection.broker
    assert isinstance(inspector, Inspector)
    newsletter = next(status for status in await inspector.groups() if status.group == "newsletter")
    return await inspector.dead_letters(), newsletter


async def _account(lines: Sequence[Line], letters: Sequence[DeadLetter]) -> Account:
    return draw_up(lines, await ends_in_the_books(), ends_in_dead_letters(letters))


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[None]:
    """Work in `keep`, which must be empty, or in a directory that goes when all is done."""
    with contextlib.ExitStack() as stack:
        if keep is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shop-")))
        else:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                raise FileExistsError(f"`{keep}` is not empty: the account would be of more than one day")
            directory = keep
        stack.enter_context(contextlib.chdir(directory))
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m examples.shop.demo", description="Feed a day's orders through the shop, and account for each."
    )
    parser.add_argument("--orders", type=Path, default=FILE, metavar="FILE", help="one order a line (orders.jsonl)")
    parser.add_argument(
        "--broker", default=EMBEDDED, metavar="URL", help="one that is not in use, as redis://localhost/0?prefix=demo"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the shop's files in this empty directory")
    parser.add_argument("--kill", action="store_true", help="kill the shop's process in the middle, and open it again")
    parser.add_argument("--without", action="append", default=[], metavar="GROUP", help="this group is down")
    parser.add_argument("--patience", type=float, default=30, metavar="SECONDS", help="how long without news")
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
