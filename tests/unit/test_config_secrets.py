"""A secret of a file of queues is nowhere to be read: not in errors, tracebacks, logs, on the terminal or in a repr."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from carteiro import Carteiro, ConfigurationError
from carteiro.cli.worker import without_password
from carteiro.config import document
from carteiro.config.loading import load
from carteiro.testing import TestApp
from tests.unit.config_files import said, written

SECRET = "hunter2"
SOUND = f"""
queues:
  - name: orders
    type: redis
    broker_url: localhost
    username: shop
    password: ${{REDIS_PASSWORD}}
    ssl: true
    ssl_password: {SECRET}
  - name: audit
    type: redis
    broker_url: redis://shop:{SECRET}@localhost/1
store: redis://:{SECRET}@localhost/2
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REDIS_PASSWORD", SECRET)


@pytest.mark.parametrize(
    "line",
    [
        f"passwrd: {SECRET}",
        f"password: [{SECRET}]",
        f"password: {{{SECRET}: 1}}",
        "port: ${REDIS_PASSWORD}",
        "ssl: x${REDIS_PASSWORD}",
        f"timeout: ${{NONE:-{SECRET}}}",
        f"broker_url: redis://:{SECRET}@host:port/1",
        f"broker_url: redis://:a/{SECRET}@host",
        f"broker_url: '{SECRET}@host'",
        f"broker_url: amqp://:{SECRET}@host",
        f"broker_url: redis://:{SECRET}@host/1\n    username: x",
        f"password: '{SECRET}",
        f'password: "\\{SECRET}"',
        f"password: *{SECRET}",
        f"password: !{SECRET}",
        f"password: @{SECRET}",
        f"password: {SECRET}: x",
        f"password: &{SECRET} x\n    a: &{SECRET}",
        f"password: ${{{SECRET} x}}",
        f"{SECRET}",
    ],
)
def test_no_error_shows_a_secret(tmp_path: Path, line: str):
    path = written(tmp_path, f"queues:\n  - name: orders\n    type: redis\n    prot: 1\n    {line}\n")
    with pytest.raises(ConfigurationError) as raised:
        Carteiro.from_config(path)
    error = raised.value
    assert error.__traceback__ is not None
    ours = error.with_traceback(error.__traceback__.tb_next)  # without this frame, which holds the line
    told = traceback.TracebackException.from_exception(ours, capture_locals=True)
    assert SECRET not in "".join(told.format(chain=True))


def test_an_error_beside_a_secret_shows_the_variables_name(tmp_path: Path):
    line = "queues:\n  - {name: a, type: redis, port: '${REDIS_PASSWORD}'}"
    assert said(tmp_path, line) == ["2:28: `port: ${REDIS_PASSWORD}` of queue `a` is no whole number"]


async def test_what_is_made_of_the_file_does_not_show_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    path = written(tmp_path, SOUND)
    queues, app = load(path), Carteiro.from_config(path)
    assert SECRET in str(dict(queues.brokers))

    @app.subscriber("orders")
    async def handle(body: str) -> None: ...

    async with TestApp(app) as t:
        await t.publish("orders", "x")
        await t.idle()
    shown = [
        repr(queues),
        str(queues),
        repr(app),
        *map(queues.address, queues.brokers),
        *map(without_password, app.urls.values()),
    ]
    assert not any(SECRET in text for text in (*shown, *map(repr, queues.queues.values()), caplog.text))
    assert shown[3] == "rediss://shop:***@localhost"


def test_neither_a_node_nor_a_model_shows_its_value():
    tree, _ = document.parse(f"key: {SECRET}\nlist: [{SECRET}]")
    assert SECRET not in repr(tree)


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("broken", ["", "    prot: 1\n    port: ${REDIS_PASSWORD}\n"])
def test_the_command_line_does_not_show_it(tmp_path: Path, options: list[str], broken: str):
    path = written(tmp_path, SOUND.replace("  - name: audit\n", f"{broken}  - name: audit\n"))
    done = subprocess.run(
        [sys.executable, "-c", "from carteiro.cli import main; main()", "config", "check", path, *options],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == bool(broken)
    assert SECRET not in done.stdout + done.stderr
    assert "orders" in done.stdout + done.stderr
