"""`carteiro new`: a service to start from, which runs and passes its tests as it is written.

`template/service` is what all have, and beside it is a folder for each broker with what differs. A file there is the
file that is written, but for a few words: `service_name` is the Python package, `service-name` the service, and what
stands between two @ is in the broker's `words.toml`. `dot-` at the beginning of a file's name is a dot.
"""

from __future__ import annotations

import contextlib
import enum
import keyword
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated, Final

import typer

import carteiro
from carteiro.cli.exits import CommandError, UsageError
from carteiro.cli.output import heading, plural, show_json
from carteiro.cli.parameters import JsonOption

_TEMPLATE: Final = Path(__file__).with_name("template")
_WORDS: Final = "words.toml"
_NAME: Final = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST: Final = 40
"""Letters of a name: with more, lines of the template no longer fit."""
_USED: Final = {
    "carteiro", "dotenv", "fastapi", "httpx", "pamqp", "pydantic", "pydantic_settings", "pytest", "redis", "starlette",
    "test", "tests", "uvicorn", "yaml",
}  # fmt: skip
"""What the service itself imports."""


class BrokerChoice(enum.StrEnum):
    rabbitmq = "rabbitmq"
    redis = "redis"
    sqlite = "sqlite"


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the service is called: user-channel.")],
    broker: Annotated[
        BrokerChoice, typer.Option("--broker", help="What it runs on in production; here it is the embedded broker.")
    ] = BrokerChoice.rabbitmq,
    dir: Annotated[
        Path | None, typer.Option("--dir", metavar="PATH", help="The folder to write it to; ./NAME by default.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a service to start from: queues, handlers, web API, tests, image.

    Its tests pass and it runs at once, on the embedded broker. Nothing is written over.
    """
    package = package_of(name)
    folder = Path(name) if dir is None else dir
    _check_empty(folder)
    files = project(name, package, broker)
    _write(files, folder)
    if json:
        show_json({"name": name, "package": package, "broker": broker.value, "folder": str(folder), "files": [*files]})
        return
    steps = [
        (f"cd {shlex.quote(str(folder))}", ""),
        ("make test", "its tests, without servers"),
        ("make run", "http://127.0.0.1:8000/docs, on the embedded broker"),
        ("docker compose up --build", f"in a container, {_words_of(broker)['on']}"),
    ]
    print(f"{heading(name)} is in {folder}{os.sep}: {plural(len(files), 'file')}. From here:\n")
    for command, what in steps if folder.resolve() != Path.cwd() else steps[1:]:
        print(f"  {command:<27} {what}".rstrip())


def package_of(name: str) -> str:
    """The Python package of a service called so. Raises UsageError, with another name, where there cannot be one."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        words = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", name).lower()
        other = re.sub(r"[^a-z0-9]+", "-", words).lstrip("-0123456789")[:_LONGEST].strip("-")
        raise UsageError(
            f"`{name}` cannot be a service's name: it takes small letters, digits and dashes, up to {_LONGEST} and a "
            f"letter first, such as {other or 'user-channel'}"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package):
        why = "is a word of Python's own"
    elif package in sys.stdlib_module_names:
        why = "is a module of Python's own"
    elif package in _USED:
        why = "is a package that the service uses"
    elif package in packages_distributions():
        why = "is a package that is installed here"
    else:
        return package
    raise UsageError(f"`{name}` {why}, and both cannot have that name: take another, such as {name}-service")


def project(name: str, package: str, broker: BrokerChoice) -> dict[str, str]:
    """What is written: the text of each file, by its path."""
    about = _words_of(broker)
    words = {
        "carteiro[broker-extras]~=0.0": f"carteiro[{about.pop('extras')}]~={carteiro.__version__}",
        "@broker@": broker.value,
        **{f"@{word}@": meaning for word, meaning in about.items()},
        "service_name": package,
        "service-name": name,
    }
    files: dict[str, str] = {}
    for root in (_TEMPLATE / "service", _TEMPLATE / broker.value):
        for file in root.rglob("*"):
            path = file.relative_to(root)
            # What tools leave behind there is not the template's.
            left = any(part.startswith((".", "__pycache__")) for part in path.parts)
            if file.is_file() and not left and path.name != _WORDS:
                files[_filled(re.sub(r"^dot-", ".", path.as_posix()), words)] = _filled(file.read_text("utf-8"), words)
    return dict(sorted(files.items()))


def _words_of(broker: BrokerChoice) -> dict[str, str]:
    words: dict[str, str] = tomllib.loads((_TEMPLATE / broker.value / _WORDS).read_text("utf-8"))
    return words


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    return text


def _check_empty(folder: Path) -> None:
    """Raises CommandError that names what is in the way. A folder that git has just made is empty."""
    if folder.is_dir():
        there = sorted(entry.name for entry in folder.iterdir() if entry.name != ".git")
        if there:
            more = f" and {plural(len(there) - 3, 'other')}" if len(there) > 3 else ""
            raise CommandError(
                f"`{folder}` is not empty: there is {', '.join(there[:3])}{more}. Name another folder with --dir"
            )
    elif os.path.lexists(folder):
        raise CommandError(f"`{folder}` is a file, and the service is to be a folder: name another with --dir")


def _write(files: Mapping[str, str], folder: Path) -> None:
    """All of them, or none: what was begun is taken away again."""
    made: list[Path] = []
    try:
        for path, text in files.items():
            file = folder / path
            for parent in reversed(file.parents):
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            with file.open("x", encoding="utf-8", newline="\n") as opened:
                made.append(file)
                opened.write(text)
    except BaseException as error:
        for path_made in reversed(made):
            with contextlib.suppress(OSError):
                path_made.rmdir() if path_made.is_dir() else path_made.unlink()
        if isinstance(error, OSError):
            raise CommandError(f"`{folder}` cannot be written, and nothing was: {error.strerror}") from error
        raise
