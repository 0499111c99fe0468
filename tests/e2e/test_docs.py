"""The documentation keeps its word: its code runs, its commands parse, and what it points to is there.

The Python blocks of a page are one module, in the order in which they stand: it is imported, each of its apps is
started, its `main()` is awaited and its tests are run. So a page that would not run as printed fails here.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

from carteiro import Carteiro
from carteiro.cli.commands import cli
from carteiro.testing import TestApp

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "README.pt-BR.md", "CHANGELOG.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "/tour/" not in str(path)),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)[^)]*\)")
TEST = re.compile(r"`((?:tests|src|docs|examples|benchmarks)/[\w./-]+)(?:::([\w:]+))?`")
PROMPT = re.compile(r"^(?:\$ )?((?:[A-Z_]+=\S+ )*(?:carteiro|make) .*?)(?:\s{2,}#.*|\s+#\s.*)?$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=named)
pages_with_code = pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)


@pytest.fixture
def module(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page as a module, beside the files that it prints; a file, so that other processes can import it too."""
    name = re.sub(r"\W", "_", f"page_{named(page)}")
    for code in blocks(page, "yaml"):
        if titled := re.match(r"# (\S+\.yaml)\n", code):
            (tmp_path / titled[1]).write_text(code)
    file = tmp_path / f"{name}.py"
    file.write_text("\n\n".join(blocks(page, "python")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


@pages_with_code
async def test_the_code_of_a_page_runs(module: ModuleType):
    for app in vars(module).values():
        if isinstance(app, Carteiro):
            async with TestApp(app):
                pass  # every handler's signature is compiled, and the worker starts
    for name, function in list(vars(module).items()):
        if name.startswith("test_") or name == "main":
            result = function()
            if inspect.isawaitable(result):
                await asyncio.wait_for(result, timeout=60)


def commands(page: Path) -> list[str]:
    return [line for code in (*blocks(page, "sh"), *blocks(page, "console")) for line in PROMPT.findall(code)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_the_commands_of_a_page_are_understood(page: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(page):
        words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if words[0] == "make":
            assert words[1] in targets, line
        else:
            parses(words[1:], line)


def parses(words: list[str], line: str) -> None:
    """Fail where `carteiro` would refuse these arguments; nothing is run."""
    command = typer.main.get_command(cli)
    context = command.make_context("carteiro", list(words), resilient_parsing=False)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        assert rest, line
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pages
def test_what_a_page_points_to_is_there(page: Path):
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    for path, name in TEST.findall(text):
        target = ROOT / path
        if not target.exists() or (name and f"def {name.split(':')[-1]}(" not in target.read_text()):
            missing.append(f"{path}::{name}")
    assert missing == []


def test_the_translation_has_the_same_code():
    languages = ("python", "sh", "console")
    original, translation = ROOT / "README.md", ROOT / "README.pt-BR.md"
    assert [blocks(translation, one) for one in languages] == [blocks(original, one) for one in languages]


def test_the_permissions_that_the_redis_guide_names_are_those_that_the_scripts_take():
    scripts = (ROOT / "src/carteiro/backends/redis/lua").glob("*.lua")
    called = {name for one in scripts for name in re.findall(r"\b(?:p?call|count|ask)\(\s*'([A-Z]+)'", one.read_text())}
    named = set(re.findall(r"[\s`']\+([a-z]+)", (ROOT / "docs/guides/redis.md").read_text()))
    assert {name.lower() for name in called} - named == set()


def test_the_hello_of_the_readme_answers(tmp_path: Path):
    """As a reader does it: a file, a worker, a request from another process."""
    (tmp_path / "hello.py").write_text(blocks(ROOT / "README.md", "python")[0])
    carteiro = str(Path(sys.executable).with_name("carteiro"))
    worker = subprocess.Popen([carteiro, "run", "hello:app"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        asked = subprocess.run(
            [carteiro, "request", "greetings", '"Ana"', "--app", "hello:app"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        worker.terminate()
        worker.wait(timeout=30)
    assert (asked.stdout, asked.stderr) == ("hello, Ana\n", "")
    assert worker.returncode == 0
