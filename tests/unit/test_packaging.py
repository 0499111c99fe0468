"""The package and its tooling: what is installed, what an import costs, what a fresh machine meets."""

import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")


def make(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(ROOT), "--no-print-directory", *args], capture_output=True, text=True)


def script(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def test_the_installed_version_is_the_one_in_pyproject():
    assert metadata.version("carteiro") == PROJECT["version"]


@pytest.mark.parametrize("point", metadata.entry_points(group="carteiro.backends"), ids=lambda point: point.name)
def test_every_backend_entry_point_loads(point: metadata.EntryPoint):
    assert callable(point.load())


def test_the_command_is_installed():
    (command,) = (p for p in metadata.entry_points(group="console_scripts") if p.name == "carteiro")
    assert callable(command.load())


@pytest.mark.parametrize("heavy", ["pydantic", "typer", "rich", "uvloop", "sqlite3", "starlette"])
def test_importing_carteiro_leaves_what_is_heavy_for_later(heavy: str):
    probe = f"import sys, carteiro; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_every_release_has_its_entry_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{PROJECT['version']}]" in changelog


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    assert [page.name for page in folder.glob("[0-9]*.md") if f"({page.name})" not in index] == []


@needs_make
def test_make_help_names_every_target_that_readers_are_told_of():
    said = make("help").stdout
    assert [name for name in ("run", "demo", "test", "lint", "types", "bench") if f"make {name}" not in said] == []


@needs_make
def test_an_old_python_is_refused_in_one_line_that_says_what_to_do(tmp_path: Path):
    old = script(tmp_path / "python3", 'case "$1" in -V) echo "Python 3.9.2";; *) exit 1;; esac')
    refused = make("run", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert refused.returncode != 0
    assert "needs Python 3.11 or newer" in refused.stderr
    assert "Python 3.9.2: install a newer one" in refused.stderr.splitlines()[0]
    assert not (tmp_path / "venv").exists()


@needs_make
def test_a_machine_without_python_is_told_to_install_one(tmp_path: Path):
    refused = make("run", f"PYTHON={tmp_path / 'none'}", f"VENV={tmp_path / 'venv'}")
    assert "needs Python 3.11 or newer, and there is no" in refused.stderr.splitlines()[0]


@needs_make
def test_a_python_without_ensurepip_names_the_package_to_install(tmp_path: Path):
    bare = script(tmp_path / "python3", 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    refused = make("run", f"PYTHON={bare}", f"VENV={tmp_path / 'venv'}")
    assert "apt-get install python3-venv" in refused.stderr.splitlines()[0]
