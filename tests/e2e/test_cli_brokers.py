"""The command line with an app that has several brokers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.e2e.cli import Project

APP = """
from carteiro import Carteiro, Reject

app = Carteiro("shop", brokers={"default": "sqlite:///here.db", "events": "sqlite:///there.db"})
app.topic("orders", broker="events")

@app.subscriber("greetings")
async def greet(name: str) -> str:
    return f"hello, {name}"

@app.subscriber("orders")
async def refuse(order: int) -> None:
    raise Reject("closed")
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("shop.py", APP)
    return project


def test_a_worker_serves_them_all_and_says_so(project: Project) -> None:
    with project.running("shop:app") as worker:
        worker.until("shop is ready on default sqlite:///here.db, events sqlite:///there.db: greetings")
        assert project.ok("request", "greetings", "Ana", "--app", "shop:app") == "hello, Ana\n"
        project.ok("publish", "orders", "1", "--app", "shop:app")
        worker.until("gave up on")
        worker.send()
        assert worker.ended() == 0
    listed = project.ok("dlq", "--app", "shop:app").splitlines()
    assert [line.split()[:2] for line in listed] == [["broker", "queue"], ["events", "dlq_orders"]]
    (letter,) = msgspec.json.decode(project.ok("dlq", "list", "dlq_orders", "--app", "shop:app", "--json"))
    assert letter["broker"] == "events"
    replayed = ("dlq", "replay", "dlq_orders", "--all", "--app", "shop:app")
    assert "(on the broker `default`: --broker names another)" in project.carteiro(*replayed).stderr
    assert project.ok(*replayed, "--broker", "events") == "1 message replayed\n"


def test_listings_show_all_of_them_or_the_one_that_is_named(project: Project) -> None:
    project.ok("publish", "orders", "1", "--app", "shop:app")
    project.ok("publish", "orders", "2", "--app", "shop:app", "--broker", "default")
    groups = msgspec.json.decode(project.ok("topics", "--app", "shop:app", "--json"))
    assert [(one["broker"], one["topic"], one["waiting"]) for one in groups] == [
        ("default", "greetings", 0),
        ("events", "orders", 1),
    ]
    (there,) = msgspec.json.decode(project.ok("topics", "--app", "shop:app", "--broker", "events", "--json"))
    assert (there["topic"], "broker" in there) == ("orders", False)
    assert project.ok("topics", "purge", "orders", "--app", "shop:app", "--broker", "events") == "1 message dropped\n"


def test_doctor_looks_at_each(project: Project) -> None:
    project.ok("publish", "orders", "1", "--app", "shop:app")
    reports = msgspec.json.decode(project.ok("doctor", "--app", "shop:app", "--json"))
    assert [(one["name"], one["broker"]) for one in reports] == [
        ("default", "sqlite:///here.db"),
        ("events", "sqlite:///there.db"),
    ]
    assert "events: sqlite:///there.db (sqlite)" in project.ok("doctor", "--app", "shop:app")


def test_a_broker_that_the_app_does_not_have_is_wrong_usage(project: Project) -> None:
    asked = project.carteiro("topics", "--app", "shop:app", "--broker", "evnts")
    assert asked.returncode == 2
    assert "`shop:app` has no broker `evnts`: it has default, events" in asked.stderr
