"""What a command works on: an app named as `module:app`, or a broker."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

import carteiro
from carteiro.app import BROKER_VARIABLE, EMBEDDED, Carteiro
from carteiro.cli.exits import CommandError, UsageError
from carteiro.ports.broker import Backend, Inspector
from carteiro.ports.features import Capability

_OURS: Final = (str(Path(carteiro.__file__).parent), "<frozen importlib", importlib.__file__)


class Target(msgspec.Struct, frozen=True):
    """What the user named with `--app` and `--broker`."""

    app: str | None
    broker: str | None

    def resolve(self) -> Carteiro:
        """The app; one without handlers where only a broker is named. Raises CommandError."""
        if self.app is not None and self.broker is not None:
            raise UsageError("--app has a broker of its own: give either --app or --broker")
        if self.app is not None:
            return load(self.app)
        embedded = EMBEDDED.partition(":///")[2]
        if self.broker is None and not os.environ.get(BROKER_VARIABLE) and not os.path.exists(embedded):
            raise CommandError(
                f"which broker? There is no ./{embedded} here: name one with --app module:app, --broker URL, "
                f"or {BROKER_VARIABLE}"
            )
        return Carteiro("cli", broker=self.broker)

    def resolve_shared(self) -> Carteiro:
        """As `resolve`; raises CommandError for a broker in which no other process could ever see anything."""
        app = self.resolve()
        support = app.open_backend().broker.features[Capability.MULTIPROCESS]
        if not support:
            raise CommandError(
                f"`{app.url}` can be used from its own process only ({support.how}): this command is another"
            )
        return app

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        """The backend, connected. Declares nothing."""
        backend = self.resolve_shared().open_backend()
        await backend.broker.connect()
        try:
            yield backend
        finally:
            await backend.broker.close()

    @contextlib.asynccontextmanager
    async def inspector(self) -> AsyncIterator[Inspector]:
        """The broker as an operator sees it; raises CommandError if it does not let itself be seen."""
        async with self.backend() as backend:
            broker = backend.broker
            if not isinstance(broker, Inspector):
                support = broker.features[Capability.INSPECT]
                raise CommandError(f"the {broker.features.backend} broker has no inspection: {support.how}")
            yield broker


def load(name: str) -> Carteiro:
    """Import `module:app` from the working directory or anywhere else; raises CommandError, naming what is wrong."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or "/" in name or module_name.endswith(".py"):
        stem = module_name.removesuffix(".py").strip("./").replace("/", ".") or "module"
        raise UsageError(f"`{name}` names no app: write it as module:app, here perhaps {stem}:{attribute or 'app'}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        raise CommandError(f"there is no module `{error.name}` in {os.getcwd()} or on Python's path") from error
    except (Exception, SystemExit) as error:
        raise _broken(module_name, error) from error
    module = found
    for word in attribute.split("."):
        if not hasattr(found, word):
            apps = [key for key, value in vars(module).items() if isinstance(value, Carteiro)]
            known = f": it has {', '.join(f'`{module_name}:{key}`' for key in apps)}" if apps else ", nor any other app"
            raise CommandError(f"module `{module_name}` has no `{attribute}`{known}")
        found = getattr(found, word)
    if not isinstance(found, Carteiro):
        raise CommandError(f"`{name}` is a {type(found).__name__}, and no Carteiro")
    return found


def _broken(module: str, error: BaseException) -> CommandError:
    """The user's own traceback, from their first frame on, and the line that sums it up."""
    trace = error.__traceback__
    while trace is not None and _ours(trace):
        trace = trace.tb_next
    # Frames of ours at the end, where a declaration was refused, say nothing that the error does not.
    summary = traceback.TracebackException(type(error), error, trace)
    while len(summary.stack) > 1 and summary.stack[-1].filename.startswith(_OURS):
        summary.stack.pop()
    text = str(error) or type(error).__name__
    what = text if isinstance(error, carteiro.CarteiroError) else f"{type(error).__name__}: {text}"
    return CommandError(f"module `{module}` cannot be imported: {what}", preface="".join(summary.format()))


def _ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_OURS)
