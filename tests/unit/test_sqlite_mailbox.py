"""Where the SQLite thread waits."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from carteiro.backends.sqlite.mailbox import Mailbox, _PlainMailbox, open_mailbox


@pytest.fixture
def log(tmp_path: Path) -> Path:
    log = tmp_path / "broker.db-wal"
    log.touch()
    return log


@pytest.fixture(params=["best", "plain"])
def mailbox(request: pytest.FixtureRequest, log: Path) -> Mailbox[Any]:
    return open_mailbox(str(log).removesuffix("-wal")) if request.param == "best" else _PlainMailbox()


def test_all_that_was_put_in_is_taken_in_order(mailbox: Mailbox[Any]) -> None:
    for item in (1, 2, 3):
        mailbox.put(item)
    assert mailbox.take(10, watch=False) == ([1, 2, 3], False)
    assert mailbox.take(0, watch=False) == ([], False)


def test_what_another_thread_puts_in_ends_the_wait(mailbox: Mailbox[Any]) -> None:
    thread = threading.Thread(target=mailbox.put, args=("late",))
    thread.start()
    assert mailbox.take(60, watch=True) == (["late"], False)
    thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_write_to_the_file_ends_the_wait_of_one_that_watches(log: Path) -> None:
    mailbox = open_mailbox(str(log).removesuffix("-wal"))
    assert mailbox.watches
    log.write_bytes(b"a page")
    assert mailbox.take(0, watch=False) == ([], False)
    assert mailbox.take(60, watch=True) == ([], True)
    assert mailbox.take(0, watch=True) == ([], False)


def test_a_file_that_cannot_be_watched_is_looked_at(tmp_path: Path) -> None:
    assert not open_mailbox(str(tmp_path / "missing.db")).watches
