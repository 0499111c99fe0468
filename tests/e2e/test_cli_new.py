"""`carteiro new`: what it writes passes its own tests and checks, runs at once, and runs on RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from carteiro.cli import new
from carteiro.cli.exits import CommandError, UsageError
from carteiro.cli.new import BrokerChoice
from tests.e2e.cli import PATIENCE, Project, Running
from tests.servers.process import free_port

BROKERS = list(BrokerChoice)


@pytest.fixture
def work(tmp_path: Path) -> Project:
    """A folder to call `carteiro new` in; it has a file of its own."""
    return Project(tmp_path)


def write(folder: Path, name: str = "user-channel", broker: BrokerChoice = BrokerChoice.rabbitmq) -> Path:
    """The service, as the command writes it, in a folder that has its name."""
    new.new(name, broker=broker, dir=folder / name, json=True)
    return folder / name


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For those that change nothing in it."""
    return write(tmp_path_factory.mktemp("services"))


def python(service: Path, *args: str) -> str:
    """What this Python says of the service, which is not installed; it must be content."""
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=service,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{args[0]}:\n{done.stdout}{done.stderr}"
    return done.stdout


# -- what is written ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broker", BROKERS)
def test_it_passes_its_own_tests_at_once(broker: BrokerChoice, tmp_path: Path) -> None:
    service = write(tmp_path, "user-channel", broker)
    assert " passed" in python(service, "pytest", "-q", "-p", "no:cacheprovider")
    assert not list(service.glob("*.db*"))


@pytest.mark.parametrize("name", ["a", "user-channel", "zebra-service-with-the-longest-name-here"])
def test_its_code_is_clean_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    service = write(tmp_path, name)
    python(service, "ruff", "check", "--no-cache")
    python(service, "ruff", "format", "--check", "--no-cache")


@pytest.mark.slow
def test_its_types_are_right(service: Path, tmp_path: Path) -> None:
    python(service, "mypy", f"--cache-dir={tmp_path / 'cache'}")


@pytest.mark.parametrize("broker", BROKERS)
def test_no_word_of_the_template_is_left(broker: BrokerChoice) -> None:
    files = new.project("shop-7", "shop_7", broker)
    left = {
        (path, word)
        for path, text in files.items()
        for word in ("service-name", "service_name", "broker-extras", "@on@", "@broker@", "@production@", "@example")
        if word in path or word in text
    }
    assert left == set()
    assert {".gitignore", ".dockerignore", ".env.example", "src/shop_7/app.py", "Dockerfile", "Makefile"} <= set(files)


@pytest.mark.parametrize("broker", BROKERS)
def test_the_project_takes_what_its_broker_needs(broker: BrokerChoice) -> None:
    files = new.project("shop", "shop", broker)
    (carteiro,) = [
        one for one in tomllib.loads(files["pyproject.toml"])["project"]["dependencies"] if "carteiro" in one
    ]
    ours = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = set(carteiro.partition("[")[2].partition("]")[0].split(","))
    assert extras == {"config", "web", broker.value} - {"sqlite"}
    assert extras <= set(ours["optional-dependencies"])
    assert carteiro.endswith(f"~={ours['version']}")


@pytest.mark.parametrize("broker", BROKERS)
def test_compose_waits_for_a_healthy_broker(broker: BrokerChoice) -> None:
    services = yaml.safe_load(new.project("shop", "shop", broker)["compose.yaml"])["services"]
    needed = services["api"].get("depends_on", {})
    assert {name: one["condition"] for name, one in needed.items()} == {
        name: "service_healthy" for name in services if name != "api"
    }
    assert all("healthcheck" in services[name] for name in needed)


def test_the_image_has_what_the_ignore_file_lets_in() -> None:
    files = new.project("shop", "shop", BrokerChoice.rabbitmq)
    copied = [
        line.split()[1:-1] for line in files["Dockerfile"].splitlines() if line.startswith("COPY") and "--" not in line
    ]
    let_in = {line[1:] for line in files[".dockerignore"].splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names} == let_in


def test_its_file_of_queues_passes_the_check(service: Path, work: Project) -> None:
    checked = work.json("config", "check", str(service / "queues.yaml"))
    assert checked["app"] == "user-channel"
    assert [queue["name"] for queue in checked["queues"]] == ["user_channel", "message_sent", "user_status"]


# -- it runs -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(service: Path, folder: Path, **settings: str) -> Iterator[tuple[httpx.Client, Running]]:
    """The service under uvicorn, working in `folder`: a client of it, and its log."""
    port = str(free_port())
    command = [sys.executable, "-m", "uvicorn", "user_channel.api:api", "--port", port]
    process = Running(command, folder, {**whereabouts(service), **settings}, terminal=False)
    try:
        process.until("Uvicorn running on")  # what it says before, it says before it listens
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            yield client, process
        process.send()
        process.until("Application shutdown complete")
        process.ended()
    finally:
        process.kill()


def whereabouts(service: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(service / "src"), "QUEUES_FILE": str(service / "queues.yaml")}


def use(client: httpx.Client, process: Running, system: str) -> None:
    """Both types of message, one of them twice, a request, and the health."""
    text = {"type": "send_text", "id": "a", "user_id": 1, "content": "hi"}
    audio = {"type": "send_audio", "id": "b", "user_id": 1, "url": "https://example.com/b.ogg"}
    for command, told in ((text, "to user 1: hi"), (text, None), (audio, "message b has reached user 1")):
        answer = client.post("/messages", json=command)
        assert (answer.status_code, answer.json()) == (202, {"id": command["id"]})
        if told is not None:
            process.until(told)
    assert client.get("/users/1/status").json() == {"user_id": 1, "online": True}
    queues = client.get("/health/queue").json()["queues"]
    assert {(queue["system"], queue["status"]) for queue in queues} == {(system, "up")}
    assert sum("to user 1: hi" in line for line in process.output) == 1
    for path in ("/health/live", "/health/ready"):
        assert client.get(path).json() == {"status": "up", "reasons": []}


def test_it_runs_at_once_on_the_embedded_broker(service: Path, tmp_path: Path) -> None:
    with running(service, tmp_path) as (client, process):
        use(client, process, "sqlite")
    assert (tmp_path / "carteiro.db").exists()


def test_it_runs_on_rabbitmq_by_its_environment(service: Path, tmp_path: Path, rabbitmq_url: str) -> None:
    with running(service, tmp_path, BROKER_TYPE="rabbitmq", BROKER_URL=rabbitmq_url) as (client, process):
        use(client, process, "rabbitmq")


def test_it_takes_its_settings_from_a_dotenv_file(service: Path, tmp_path: Path, redis_url: str) -> None:
    (tmp_path / ".env").write_text(f"BROKER_TYPE=redis\nBROKER_URL={redis_url}\n")
    with running(service, tmp_path) as (client, process):
        use(client, process, "redis")


def test_its_handlers_run_apart_from_its_api(service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in whereabouts(service).items():
        monkeypatch.setenv(name, value)
    with (
        running(service, tmp_path, CONSUME="false") as (client, _),
        Project(tmp_path).running("user_channel.app:app") as worker,
    ):
        worker.ready()
        assert client.get("/users/1/status").json() == {"user_id": 1, "online": True}
        assert client.get("/health/ready").json() == {"status": "up", "reasons": []}


# -- names and folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("UserChannel", "user-channel"),
        ("User Channel", "user-channel"),
        ("user.channel", "user-channel"),
        ("7-up", "up"),
        ("../shop", "shop"),
        ("-", "user-channel"),
        ("", "user-channel"),
        ("shop-", "shop"),
        ("x" * 41, "x" * 40),
        ("import", "import-service"),
        ("email", "email-service"),
        ("tests", "tests-service"),
        ("carteiro", "carteiro-service"),
        ("rich", "rich-service"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(name: str, other: str) -> None:
    with pytest.raises(UsageError, match=f"such as {other}$"):
        new.package_of(name)
    assert new.package_of(other)


@pytest.mark.parametrize(("name", "package"), [("shop", "shop"), ("user-channel", "user_channel"), ("a_b-2", "a_b_2")])
def test_dashes_of_a_name_are_underscores_of_the_package(name: str, package: str) -> None:
    assert new.package_of(name) == package


def test_a_folder_that_is_not_empty_is_left_alone(work: Project) -> None:
    refused = work.carteiro("new", "shop", "--dir", ".")
    assert refused.returncode == 1
    assert refused.stderr == "carteiro: `.` is not empty: there is hello.py. Name another folder with --dir\n"
    refused = work.carteiro("new", "shop", "--dir", "hello.py")
    assert refused.stderr.startswith("carteiro: `hello.py` is a file")
    assert [path.name for path in work.folder.iterdir()] == ["hello.py"]


def test_a_repository_that_git_has_just_made_is_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "shop/.git").mkdir(parents=True)
    write(tmp_path, "shop")
    assert (tmp_path / "shop/queues.yaml").exists()


def test_what_cannot_be_written_as_a_whole_is_not_written_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**new.project("shop", "shop", BrokerChoice.sqlite), "src/shop": "a file where a folder is"}
    monkeypatch.setattr(new, "project", lambda *_: files)
    (tmp_path / "shop/.git").mkdir(parents=True)
    with pytest.raises(CommandError, match="cannot be written, and nothing was"):
        write(tmp_path, "shop")
    assert [path.name for path in (tmp_path / "shop").iterdir()] == [".git"]


def test_it_says_what_comes_next(work: Project) -> None:
    header, _, *steps = work.ok("new", "user-channel", "--broker", "redis").splitlines()
    assert header.startswith("user-channel is in user-channel/: ")
    assert [step.split("   ")[0].strip() for step in steps] == [
        "cd user-channel", "make test", "make run", "docker compose up --build",
    ]  # fmt: skip
    assert steps[-1].endswith("in a container, on Redis")


def test_as_json_it_names_the_files_and_nothing_else(work: Project) -> None:
    said = work.json("new", "user-channel", "--dir", "apps/users")
    written = [path for path in (work.folder / "apps/users").rglob("*") if path.is_file()]
    assert said == {
        "name": "user-channel",
        "package": "user_channel",
        "broker": "rabbitmq",
        "folder": "apps/users",
        "files": sorted(str(path.relative_to(work.folder / "apps/users")) for path in written),
    }
