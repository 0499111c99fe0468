"""`carteiro schedule` and `carteiro scheduler` on each system, with all of them as processes of their own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from carteiro import Carteiro, Publish, at
from tests.e2e.cli import Project, Running
from tests.e2e.task_project import BROKERS, stopped

APP = """
from carteiro import Carteiro, Message, Publish, cron, every

app = Carteiro("shop")
other = Carteiro("other")
bare = Carteiro("bare")

@app.task
async def clean(message: Message) -> None:
    print("cleaned", message.id)

app.schedule("nightly", cron("0 2 * * *", tz="America/Sao_Paulo"), clean.s())
app.schedule("beat", every(milliseconds=100), Publish("beats", "beat"), misfire="all")
other.schedule("nightly", cron("@daily"), Publish("beats", "from another app"))

@app.scheduled(every(milliseconds=100), to="ticks")
def tick() -> str:
    print("tick")
    return "tick"

@app.subscriber("beats")
async def on_beat(beat: str, message: Message) -> None:
    print("beat", message.id)
"""


class Clockwork(Project):
    """`broker` is the system's name."""

    def __init__(self, folder: Path, system: str, request: pytest.FixtureRequest) -> None:
        self.url = None if system == "sqlite" else request.getfixturevalue(f"{system}_url")
        super().__init__(folder, self.url)
        self.write("shop.py", APP)

    def said(self, *args: str, app: str = "app") -> str:
        return self.ok("schedule", *args, "--app", f"shop:{app}")

    def told(self, *args: str) -> Any:
        """JSON of a command."""
        return self.json("schedule", *args, "--app", "shop:app")

    def one(self, name: str) -> dict[str, Any]:
        (found,) = self.told("list", "--name", name)
        return dict(found)

    def refused(self, *args: str, code: int = 1) -> str:
        """What a command says that must fail."""
        done = self.carteiro("schedule", *args)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    def start_once(self) -> None:
        """The store knows them all."""
        with self.running("shop:app", command="scheduler") as scheduler:
            scheduler.ready()
            stopped(scheduler)


@pytest.fixture(params=BROKERS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Clockwork:
    return Clockwork(tmp_path, request.param, request)


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Clockwork:
    return Clockwork(tmp_path, "sqlite", request)


def beats(worker: Running, count: int) -> list[str]:
    return [worker.until(r"^beat (\S+)")[1] for _ in range(count)]


def test_a_list_says_when_each_fires_and_how_the_last_firing_went(shop: Clockwork) -> None:
    with shop.running("shop:app") as worker:
        assert "; fires " in worker.until("is ready").string
        beats(worker, 2)
        stopped(worker)

    found = {one["name"]: one for one in shop.told("list")}
    beat, nightly = found["beat"], found["nightly"]
    assert (beat["state"], beat["sends"], beat["last"]["outcome"]) == ("active", "beats", "sent")
    assert beat["fired"] >= 2
    assert beat["next"] > beat["last"]["due"]
    assert beat["last"]["lateness"] == pytest.approx(beat["last"]["at"] - beat["last"]["due"], abs=1e-5)
    assert (nightly["schedule"], nightly["fired"], nightly["last"]) == ("0 2 * * * America/Sao_Paulo", 0, None)
    heading, *lines = shop.said().splitlines()
    assert heading.split() == ["name", "schedule", "sends", "next", "last", "outcome", "late", "fired"]
    (line,) = [line for line in lines if line.startswith("nightly")]
    assert "02:00 -03)" in line


def test_those_of_the_code_are_listed_before_they_have_started(embedded: Clockwork) -> None:
    _, *lines = embedded.said().splitlines()
    assert [line.split()[0] for line in lines if "not started" in line] == ["beat", "nightly", "tick"]
    for command in ("pause", "fire"):
        assert "`beat` is in the code of app `shop` and not started yet: `carteiro run`" in embedded.refused(
            command, "beat", "--app", "shop:app"
        )


def test_two_schedulers_fire_each_once_and_a_worker_without_schedules_none(shop: Clockwork) -> None:
    with shop.running("shop:app", "--no-schedules") as worker:
        assert "fires" not in worker.until("is ready").string
        assert {one["state"] for one in shop.told("list")} == {"new"}
        with (
            shop.running("shop:app", command="scheduler") as first,
            shop.running("shop:app", command="scheduler") as second,
        ):
            assert ": fires " in first.until("is ready").string
            second.ready()
            fired = beats(worker, 10)
            for scheduler in (first, second):
                stopped(scheduler)
        last = shop.one("beat")["last"]["id"]
        while last not in fired:
            fired += beats(worker, 1)
        stopped(worker)
    milliseconds = sorted(int(id.partition("@")[2].partition("-")[0]) for id in fired)
    assert {round((after - before) / 100) for before, after in pairwise(milliseconds)} == {1}
    assert not [line for line in worker.output if line.startswith("tick")]
    assert not [line for line in (*first.output, *second.output) if line.startswith("beat")]
    assert [line for line in (*first.output, *second.output) if line.startswith("tick")]


def test_they_are_paused_resumed_and_fired_without_a_worker(shop: Clockwork) -> None:
    shop.start_once()
    assert shop.said("pause", "beat", "nightly", "tick") == "beat is paused\nnightly is paused\ntick is paused\n"
    assert [one["name"] for one in shop.told("list", "--state", "paused")] == ["beat", "nightly", "tick"]
    (fired,) = [one["id"] for one in shop.told("fire", "nightly")]
    with shop.running("shop:app") as worker:
        assert worker.until(r"^cleaned (\S+)")[1] == fired
        stopped(worker)
        assert not [line for line in worker.output if line.startswith(("beat", "tick"))]
    (resumed,) = shop.told("resume", "nightly")
    assert (resumed["state"], resumed["fired"]) == ("active", 1)
    assert (resumed["last"]["id"], resumed["last"]["outcome"]) == (fired, "succeeded")


@pytest.mark.parametrize("is_started", [False, True])
def test_the_next_times_are_in_the_zone_of_the_schedule_and_in_the_readers(
    embedded: Clockwork, is_started: bool
) -> None:
    if is_started:
        embedded.start_once()
    told = embedded.told("next", "nightly", "-n", "3")
    assert (told["state"], told["tz"]) == ("active" if is_started else "new", "America/Sao_Paulo")
    times = [datetime.fromtimestamp(due, ZoneInfo("America/Sao_Paulo")) for due in told["due"]]
    assert [time.strftime("%H:%M:%S") for time in times] == ["02:00:00"] * 3
    assert [(after - times[0]).days for after in times] == [0, 1, 2]

    shown = embedded.ok("schedule", "next", "nightly", "-n", "1", "--app", "shop:app", TZ="Europe/Berlin").splitlines()
    assert shown[0] == "nightly: 0 2 * * * America/Sao_Paulo" + (
        "" if is_started else ", not started: if it is started now"
    )
    assert shown[1].split() == ["when", "America/Sao_Paulo", "local", "time"]
    assert f"{times[0]:%a %Y-%m-%d} 02:00:00 -03" in shown[2]
    assert f"{times[0].astimezone(ZoneInfo('Europe/Berlin')):%a %Y-%m-%d %H:%M:%S %Z}" in shown[2]


async def test_one_that_was_added_is_removed_and_one_of_the_code_is_not(embedded: Clockwork) -> None:
    embedded.start_once()
    later = datetime.now(UTC) + timedelta(days=30)
    async with Carteiro("shop", broker=f"sqlite:///{embedded.folder}/carteiro.db") as app:
        for name in ("trial-ana", "trial-bob"):
            await app.schedules.add(name, at(later), Publish("trials", name))
    found = embedded.told("list", "--name", "trial-*")
    assert [(one["name"], one["next"], one["in_code"]) for one in found] == [
        ("trial-ana", pytest.approx(later.timestamp()), False),
        ("trial-bob", pytest.approx(later.timestamp()), False),
    ]
    assert len(embedded.told("list", "--limit", "1")) == 1
    assert embedded.said("remove", "trial-ana", "--yes") == "trial-ana is removed\n"
    assert embedded.ok("schedule", "remove", "trial-bob") == "trial-bob is removed\n"
    assert embedded.said("list", "--name", "trial-*") == "no such schedules\n"
    for app_option in ([], ["--app", "shop:app"]):
        assert "is in the code of app `shop`, which would bring it back" in embedded.refused(
            "remove", "beat", *app_option
        )


def test_without_an_app_the_broker_is_enough_but_for_firing(embedded: Clockwork) -> None:
    embedded.start_once()
    assert {one["app"] for one in embedded.json("schedule")} == {"shop"}
    assert embedded.ok("schedule", "pause", "nightly") == "nightly is paused\n"
    assert embedded.ok("schedule", "pause", "nightly") == "nightly was paused already\n"
    assert embedded.ok("schedule", "resume", "nightly").startswith("nightly is resumed: next in ")
    assert "name it with --app module:app" in embedded.refused("fire", "nightly", code=2)
    with embedded.running("shop:other", command="scheduler") as scheduler:
        scheduler.ready()
        stopped(scheduler)
    assert embedded.ok("schedule").split()[0] == "app"
    assert "the apps `other`, `shop` have a schedule `nightly` each" in embedded.refused("pause", "nightly")


def test_what_is_not_there_is_named_with_what_is(embedded: Clockwork) -> None:
    assert "app `shop` has no schedule `nope`: it has beat, nightly, tick" in embedded.refused(
        "next", "nope", "--app", "shop:app"
    )
    assert embedded.said("list", app="bare") == "no schedules\n"
    assert "app `bare` has no schedule `beat`: it has none" in embedded.refused("fire", "beat", "--app", "shop:bare")
    assert "`lost` is no state of a schedule: it is active, paused" in embedded.refused(
        "list", "--state", "lost", code=2
    )
    alone = embedded.carteiro("schedule", "--broker", "memory://")
    assert (alone.returncode, "can be used from its own process only" in alone.stderr) == (1, True)


def test_a_scheduler_waits_for_what_will_be_added(embedded: Clockwork) -> None:
    with embedded.running("shop:bare", command="scheduler") as scheduler:
        assert ": has no schedules yet, fires those that are added; pid" in scheduler.until("is ready").string
        stopped(scheduler)


def test_a_scheduler_may_be_several_supervised_processes(embedded: Clockwork) -> None:
    with embedded.running("shop:app", "--workers", "2", command="scheduler") as scheduler:
        assert len(scheduler.ready()) == 2
        scheduler.until("^tick")
        stopped(scheduler)


def test_a_scheduler_on_a_broker_of_one_process_says_that_nobody_would_hear_it(embedded: Clockwork) -> None:
    done = embedded.carteiro("scheduler", "shop:app", CARTEIRO_BROKER="memory://")
    assert (done.returncode, "carteiro scheduler needs several processes" in done.stderr) == (1, True)
