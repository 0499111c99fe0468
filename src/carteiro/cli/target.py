"""What a command works on: an app named as `module:app`, or a broker."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

import carteiro
from carteiro.app import Carteiro
from carteiro.brokers import BROKER_VARIABLE, DEFAULT, EMBEDDED
from carteiro.cli.exits import CommandError, UsageError
from carteiro.ports.broker import Broker, Inspector
from carteiro.ports.features import Capability
from carteiro.ports.store import Store
from carteiro.schedules.book import Schedules
from carteiro.schedules.moves import Firing
from carteiro.schedules.records import apps_in
from carteiro.scheduling import ScheduleOffice
from carteiro.tasks.inspecting import Inspection

_OURS: Final = (str(Path(carteiro.__file__).parent), "<frozen importlib", importlib.__file__)


class Target(msgspec.Struct, frozen=True):
    """What the user named with `--app` and `--broker`: a URL or, of an app, the name of one of its brokers."""

    app: str | None
    broker: str | None

    def resolve(self) -> Carteiro:
        """The app; one without handlers where only a broker is named. Raises CommandError."""
        if self.app is not None:
            app = load(self.app)
            if self.broker is not None and self.broker not in app.urls:
                raise UsageError(
                    "--app has brokers of its own: give either --app or --broker URL"
                    if "://" in self.broker
                    else f"`{self.app}` has no broker `{self.broker}`: it has {', '.join(app.urls)}"
                )
            return app
        embedded = EMBEDDED.partition(":///")[2]
        if self.broker is None and not os.environ.get(BROKER_VARIABLE) and not os.path.exists(embedded):
            raise CommandError(
                f"which broker? There is no ./{embedded} here: name one with --app module:app, --broker URL, "
                f"or {BROKER_VARIABLE}"
            )
        return Carteiro("cli", broker=self.broker)

    @property
    def name(self) -> str | None:
        """The broker that is named among an app's."""
        return None if self.app is None else self.broker

    def chosen(self, app: Carteiro) -> list[str]:
        """The brokers that are meant: the one that is named, or all."""
        return list(app.urls) if self.name is None else [self.name]

    def resolve_shared(self) -> Carteiro:
        """As `resolve`; raises CommandError for a broker in which no other process could ever see anything."""
        app = self.resolve()
        for name in self.chosen(app):
            support = app.open_backend(name).broker.features[Capability.MULTIPROCESS]
            if not support:
                raise CommandError(
                    f"`{app.urls[name]}` can be used from its own process only ({support.how}): this command is another"
                )
        return app

    @contextlib.asynccontextmanager
    async def inspectors(self) -> AsyncIterator[Mapping[str, Inspector]]:
        """The brokers that are meant, as an operator sees them; raises CommandError if one lets itself not be seen.

        They are connected, and nothing is declared.
        """
        app = self.resolve_shared()
        async with contextlib.AsyncExitStack() as opened:
            found: dict[str, Inspector] = {}
            for name in self.chosen(app):
                broker = app.open_backend(name).broker
                await broker.connect()
                opened.push_async_callback(broker.close)
                found[name] = _inspector(broker)
            yield found

    @contextlib.asynccontextmanager
    async def inspector(self) -> AsyncIterator[Inspector]:
        """The one broker that is meant: the one that is named, or the default."""
        one = self if self.app is None or self.broker is not None else Target(self.app, DEFAULT)
        async with one.inspectors() as found:
            (inspector,) = found.values()
            try:
                yield inspector
            except CommandError as error:
                if one is self or len(self.resolve().urls) == 1:
                    raise
                raise CommandError(f"{error} (on the broker `{DEFAULT}`: --broker names another)") from error

    @contextlib.asynccontextmanager
    async def tasks(self) -> AsyncIterator[Inspection]:
        """The tasks of the one broker that is meant, or of an app, whose tasks go by its default broker.

        Raises CommandError where nobody could know where they are kept.
        """
        app = self._resolve_for_state("tasks", "go by")
        if self.app is not None and not app.tasks.tasks:
            raise CommandError(f"`{self.app}` declares no tasks")
        broker, store = app.open_for_tasks()
        async with contextlib.AsyncExitStack() as opened:
            if store is not broker.store:
                await store.connect()
                opened.push_async_callback(store.close)
            await broker.connect()
            opened.push_async_callback(broker.close)
            yield Inspection(store, _inspector(broker), app.clock)

    @contextlib.asynccontextmanager
    async def schedules(self) -> AsyncIterator[Mapping[str, Schedules]]:
        """The schedules of the app, or else of each app that keeps some in the one broker that is meant, by app.

        They can be read and changed, and not fired. Raises CommandError where nobody could know where they are kept.
        """
        app = self._resolve_for_state("schedules", "are kept by")
        broker, store = app.open_for_tasks()
        opened = broker if store is broker.store else store
        await opened.connect()
        try:
            if self.app is not None:
                yield {app.name: _schedules(app, store)}
            else:
                named = [Carteiro(name, broker=self.broker) for name in await apps_in(store)]
                yield {one.name: _schedules(one, store) for one in named}
        finally:
            await opened.close()

    def _resolve_for_state(self, what: str, go_by: str) -> Carteiro:
        """The app, or one without handlers, for what the default broker's store keeps."""
        if self.app is not None and self.broker not in (None, DEFAULT):
            raise UsageError(f"an app's {what} {go_by} its broker `{DEFAULT}`: leave --broker out")
        one = self if self.app is None else Target(self.app, DEFAULT)
        app = one.resolve_shared()
        embedded = EMBEDDED.partition(":///")[2]
        if one.app is None and app.open_backend().store is None and not os.path.exists(embedded):
            raise CommandError(
                f"this broker keeps no state of {what}, and there is no ./{embedded} here: name the app whose {what} "
                "they are with --app module:app"
            )
        return app


class _StoreAlone:
    """What schedules are kept in, for commands that send none."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def store(self) -> Store:
        return self._store

    async def send(self, firings: Sequence[Firing]) -> Mapping[str, str]:
        raise NotImplementedError("fire by an app that is connected")


def _schedules(app: Carteiro, store: Store) -> Schedules:
    """Those of `app`, which is not connected."""
    schedules = Schedules(ScheduleOffice(app, _StoreAlone(store)))
    schedules.declared.update(app.schedules.declared)
    return schedules


def _inspector(broker: Broker) -> Inspector:
    """Raises CommandError for one that lets itself not be seen."""
    if not isinstance(broker, Inspector):
        support = broker.features[Capability.INSPECT]
        raise CommandError(f"the {broker.features.backend} broker has no inspection: {support.how}")
    return broker


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
    text, *more = str(error).splitlines() or [type(error).__name__]
    text += f" (and {len(more)} more, above)" if more else ""
    what = text if isinstance(error, carteiro.CarteiroError) else f"{type(error).__name__}: {text}"
    return CommandError(f"module `{module}` cannot be imported: {what}", preface="".join(summary.format()))


def _ours(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_OURS)
