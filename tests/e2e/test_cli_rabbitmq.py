"""Each command on a RabbitMQ server, with real processes: it prints the same as on a file, where AMQP can tell."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.cli import APP, Project
from tests.servers.process import free_port
from tests.servers.redis import with_query


@pytest.fixture
def project(tmp_path: Path, rabbitmq_url: str) -> Project:
    project = Project(tmp_path, rabbitmq_url)
    project.write("keeping.py", APP)
    project.write("hello.py", APP.replace('app.topic("kept", retain="7d")\n', ""))
    return project


def test_of_two_workers_the_one_that_is_killed_is_named_and_another_started(project: Project) -> None:
    with project.running("hello:app", "--workers", "2") as workers:
        pids = workers.ready()
        assert len(set(pids)) == 2
        os.kill(pids[1], signal.SIGKILL)
        assert int(workers.until(r"worker 2 \(pid (\d+)\) was killed by SIGKILL .*: starting another in")[1]) == pids[1]
        assert int(workers.until(r"worker 2 is ready, pid (\d+)")[1]) not in pids
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
    assert (project.queue("slow")["waiting"], project.queue("slow")["consumers"]) == (0, 0)


def test_publish_and_topics_show_what_waits_and_say_what_amqp_does_not_tell(project: Project) -> None:
    options = ("--type", "order", "--header", "x-tenant=br", "--key", "7", "--id", "order-1")
    assert project.ok("publish", "checkout", '{"n": 1.10}', *options, "--app", "hello:app") == "order-1\n"
    project.ok("publish", "checkout", "2", "--delay", "1h30m")
    assert project.ok("publish", "who", "-", "--lines", input="a\nb\nc\n") == "published 3 messages to who\n"

    checkout = project.queue("checkout")
    assert (checkout["waiting"], checkout["delayed"], checkout["in_flight"]) == (1, None, None)
    assert project.queue("who")["waiting"] == 3
    peeked = project.carteiro("topics", "peek", "checkout")
    assert peeked.returncode != 0
    assert "RabbitMQ cannot show what waits without delivering it" in peeked.stderr


def test_a_group_is_purged_and_removed_and_cannot_be_rewound(project: Project) -> None:
    project.ok("publish", "who", "you", "--app", "hello:app")
    rewound = project.carteiro("topics", "rewind", "who", "--to", "1h")
    assert rewound.returncode != 0
    assert "keep nothing that is acked" in rewound.stderr
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


def test_doctor_finds_a_server_sound_and_says_what_it_lacks(project: Project) -> None:
    sound = project.json("doctor")
    statuses = {check["name"]: check["status"] for check in sound["checks"]}
    assert statuses.pop("version") in ("ok", "warning")
    assert statuses == {"reachable": "ok", "passage": "ok"}
    assert sound["features"]["dead letters"]["level"] == "emulated"
    assert sound["features"]["order by key"]["level"] == "unsupported"


def test_an_app_that_needs_what_rabbitmq_lacks_does_not_start_and_says_why(project: Project) -> None:
    refused = project.carteiro("run", "keeping:app")
    assert refused.returncode != 0
    assert "`kept` is to keep what was published: the rabbitmq broker has no retention" in refused.stderr


def test_a_server_that_is_not_there_is_an_error_in_one_line_that_names_it(project: Project) -> None:
    nowhere = f"amqp://ana:secret@127.0.0.1:{free_port()}"
    for command, code in (("run hello:app", 3), ("run hello:app --workers 2", 3), ("topics", 3), ("doctor --json", 1)):
        done = project.carteiro(*command.split(), CARTEIRO_BROKER=with_query(nowhere, connect_timeout="1"))
        assert done.returncode == code, command
        said = done.stdout if command.startswith("doctor") else done.stderr
        assert "127.0.0.1" in said
        assert "start it, or mend the broker's URL" in said
        assert "secret" not in done.stdout + done.stderr
        assert done.stderr.count("\n") == (0 if command.startswith("doctor") else 1)
