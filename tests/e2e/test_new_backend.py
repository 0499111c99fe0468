"""The guide to writing a backend, done as it says: its blocks are the files of a package, which the kit then tests.

Here the package goes into a folder of its own on Python's path, with `pip install --target`: nothing is downloaded, and
the environment that runs the tests stays as it was.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from carteiro.testing.conformance import BackendConformance
from carteiro.testing.conformance.rig import NEEDS
from tests.e2e.cli import Project

GUIDE = (Path(__file__).parents[2] / "docs/guides/new-backend.md").read_text()
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = {name: code for name, code in BLOCK.findall(GUIDE) if "." in name}
APPS = ("shop.py", "ledger.py")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the guide's package was written."""
    folder = tmp_path_factory.mktemp("carteiro-folder")
    for name in FILES.keys() - APPS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(FILES[name])
    return folder


@pytest.fixture(scope="module")
def site(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which it was installed."""
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(package)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return site


@pytest.fixture
def shop(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The guide's apps, where the backend is installed."""
    monkeypatch.setenv("PYTHONPATH", str(site))
    project = Project(tmp_path)
    for name in APPS:
        project.write(name, FILES[name])
    return project


def test_the_guide_shows_every_file_that_it_lists():
    listed = re.findall(r"^ +(\w+\.\w+)(?:  |$)", GUIDE.partition("## The package")[2].split("```")[1], re.MULTILINE)

    assert sorted(Path(name).name for name in FILES.keys() - APPS) == sorted(listed)


@pytest.mark.slow
def test_the_backend_of_the_guide_passes_the_kit(package: Path, shop: Project, tmp_path: Path):
    report = tmp_path / "report.xml"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(pytest_, cwd=package, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = {case.attrib["name"]: case[0].attrib["message"] for case in cases if case.find("skipped") is not None}
    answers = shop.json("doctor", "--broker", "folder://spool")["features"]
    lacking = {capability: answer["how"] for capability, answer in answers.items() if answer["level"] == "unsupported"}
    kit = [name for name in dir(BackendConformance) if name.startswith("test_")]
    expected: dict[str, str] = {}
    for name in kit:
        needs = NEEDS.get(getattr(BackendConformance, name).__qualname__, ())
        if lacked := [one.value for one in needs if one.value in lacking]:
            expected[name] = f"folder has no {lacked[0]}: {lacking[lacked[0]]}"
    assert skipped == expected, "only what needs an unsupported capability is skipped, with the backend's reason"
    ran = {case.attrib["name"].partition("[")[0] for case in cases}
    assert ran == set(kit), "every test of the kit was collected"
    assert len(cases) - len(skipped) >= 80
    assert {"groups", "delayed publish", "delayed retry", "dead letters", "several processes"}.isdisjoint(lacking)


def test_an_app_works_on_the_backend_of_the_guide(shop: Project):
    with shop.running("shop:app") as worker:
        worker.ready()
        shop.ok("publish", "orders.placed", "7", "--app", "shop:app")
        worker.until("reserved 7")
        shop.ok("publish", "orders.placed", "13", "--app", "shop:app")
        worker.until("gave up 13: ValueError: no such order")
        worker.send()
        assert worker.ended() == 0
    (letter,) = (shop.folder / "spool" / "dead").iterdir()
    assert '"reason":"ValueError: no such order"' in letter.read_text()


def test_two_workers_on_the_backend_of_the_guide_handle_each_message_once(shop: Project):
    numbers = [number for number in range(1, 41) if number != 13]
    with shop.running("shop:app", "--workers", "2") as workers:
        assert len(workers.ready()) == 2
        shop.ok("publish", "orders.placed", "-", "--lines", "--app", "shop:app", input="\n".join(map(str, numbers)))
        came = [int(workers.until(r"reserved (\d+)")[1]) for _ in numbers]
    assert Counter(came) == Counter(numbers)


def test_an_app_that_needs_what_the_backend_lacks_does_not_start(shop: Project):
    done = shop.carteiro("run", "ledger:app")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] in GUIDE


def test_without_the_package_its_scheme_is_unknown(tmp_path: Path):
    done = Project(tmp_path).carteiro("doctor", "--broker", "folder://spool")

    assert done.returncode == 1
    assert "no backend for `folder://`" in done.stderr
