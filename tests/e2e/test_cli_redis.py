"""Each command on a Redis server, with real processes: what it prints is the same as on a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from tests.e2e.cli import Project
from tests.servers.process import free_port
from tests.servers.redis import RedisServer, with_query


@pytest.fixture
def project(tmp_path: Path, redis_url: str) -> Project:
    return Project(tmp_path, redis_url)


def test_of_four_workers_the_one_that_is_killed_is_named_and_another_started(project: Project) -> None:
    with project.running("hello:app", "--workers", "4") as workers:
        pids = workers.ready()
        assert len(set(pids)) == 4
        os.kill(pids[2], signal.SIGKILL)
        assert int(workers.until(r"worker 3 \(pid (\d+)\) was killed by SIGKILL .*: starting another in")[1]) == pids[2]
        assert int(workers.until(r"worker 3 is ready, pid (\d+)")[1]) not in pids
        assert project.ok("request", "greetings", "Ana") == "hello, Ana\n"
        workers.send()
        assert workers.ended() == 0


def test_a_signal_lets_what_runs_end_and_exits_with_0(project: Project) -> None:
    with project.running("hello:app") as worker:
        worker.ready()
        project.ok("publish", "slow", str(project.folder / "go"))
        worker.until("slow began")
        worker.send()
        worker.until("stopping")
        project.write("go", "")
        worker.until("slow ended")
        assert worker.ended() == 0
    (group,) = [one for one in project.json("topics") if one["topic"] == "slow"]
    assert (group["waiting"], group["in_flight"], group["consumers"]) == (0, 0, 0)


def test_publish_and_topics_show_what_waits(project: Project) -> None:
    options = ("--type", "order", "--header", "x-tenant=br", "--key", "7", "--id", "order-1")
    assert project.ok("publish", "checkout", '{"n": 1.10}', *options, "--app", "hello:app") == "order-1\n"
    project.ok("publish", "checkout", "2", "--delay", "1h30m")
    assert project.ok("publish", "who", "-", "--lines", input="a\nb\nc\n") == "published 3 messages to who\n"

    peeked = project.ok("topics", "peek", "checkout", "--json")
    message = msgspec.json.decode(peeked)[0]
    assert '{"n": 1.10}' in peeked
    assert (message["id"], message["key"]) == ("order-1", "7")
    assert message["headers"] == {"type": "order", "x-tenant": "br"}
    assert (project.queue("checkout")["waiting"], project.queue("checkout")["delayed"]) == (1, 1)
    assert project.queue("who")["waiting"] == 3


def test_a_group_is_rewound_purged_and_removed(project: Project) -> None:
    with project.running("hello:app") as worker:
        worker.ready()
        project.ok("publish", "kept", "1")
        worker.until("number 1")
        assert project.ok("topics", "rewind", "kept", "--to", "1h") == "1 message delivered again\n"
        worker.until("number 1")
    project.ok("publish", "who", "you")
    assert project.ok("topics", "purge", "who") == "1 message dropped\n"
    assert project.ok("topics", "remove-group", "who") == "removed the group hello of who\n"
    assert "who" not in [one["topic"] for one in project.json("topics")]


def test_a_dead_letter_is_listed_shown_replayed_and_purged(project: Project) -> None:
    with project.running("hello:app") as worker:
        worker.ready()
        for sku in ("bad", "worse"):
            project.ok("publish", "checkout", f'{{"sku": "{sku}"}}', "--header", "x-tenant=br")
            worker.until("gave up on")
    bad, worse = project.json("dlq", "list")
    shown = project.ok("dlq", "show", "dlq_checkout", bad["id"])
    assert shown.count("raise ValueError(f\"no such sku: {order['sku']}\")") == 2
    assert "x-tenant: br" in shown

    assert project.ok("dlq", "replay", "dlq_checkout", bad["id"]) == "1 message replayed\n"
    assert (project.queue("checkout")["waiting"], project.queue("checkout")["dead"]) == (1, 1)
    assert [one["id"] for one in project.json("dlq", "list")] == [worse["id"]]
    assert project.ok("dlq", "purge", "dlq_checkout", "--older-than", "7d") == "0 dead letters deleted\n"
    assert project.json("dlq", "purge", "dlq_checkout", "--all") == {"queue": "dlq_checkout", "deleted": 1}


def test_doctor_finds_a_durable_server_sound_and_warns_of_one_that_keeps_nothing(project: Project) -> None:
    with RedisServer(aof="everysec") as durable:
        sound = project.json("doctor", "--broker", durable.url)
    assert {check["status"] for check in sound["checks"]} == {"ok"}
    assert sound["features"]["dead letters"]["level"] == "native"

    warned = project.json("doctor")
    assert [check["name"] for check in warned["checks"] if check["status"] == "warning"] == ["persistence"]


def test_a_server_that_is_not_there_is_an_error_in_one_line_that_names_it(project: Project) -> None:
    nowhere = f"redis://:secret@127.0.0.1:{free_port()}/0"
    for command, code in (("run hello:app", 3), ("run hello:app --workers 2", 3), ("topics", 3), ("doctor --json", 1)):
        done = project.carteiro(*command.split(), CARTEIRO_BROKER=with_query(nowhere, connect_timeout="1"))
        assert done.returncode == code, command
        said = done.stdout if command.startswith("doctor") else done.stderr
        assert "127.0.0.1" in said
        assert "start the server, or set another broker URL" in said
        assert "secret" not in done.stdout + done.stderr
        assert done.stderr.count("\n") == (0 if command.startswith("doctor") else 1)
