"""From a URL to a backend, by the entry points in `carteiro.backends`."""

from __future__ import annotations

import re
from typing import Final

from carteiro.errors import UnknownBackend
from carteiro.ports.broker import Backend, OpenBackend
from carteiro.ports.clock import SYSTEM_CLOCK, Clock

GROUP = "carteiro.backends"
_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


def open_backend(url: str, *, clock: Clock = SYSTEM_CLOCK) -> Backend:
    """The backend for `url`, not yet connected. Raises UnknownBackend, naming what is installed and what is missing."""
    from importlib.metadata import entry_points  # 25 ms, which importing carteiro need not take

    found = {point.name: point for point in entry_points(group=GROUP)}
    begun = _SCHEME.match(url)
    if begun is None:  # any part of it may be one of a password
        scheme = url.partition(":")[0]
        if scheme in found:
            raise UnknownBackend(f"`{scheme}:…` is no broker URL: it begins with {scheme}://")
        raise UnknownBackend("what is given is no broker URL: write it as sqlite:///path/file.db or memory://")
    scheme = begun[1]
    if scheme not in found:
        raise UnknownBackend(
            f"no backend for `{scheme}://`: installed are {', '.join(sorted(found)) or 'none'}; "
            f"a further one comes with its package or extra, as in `pip install carteiro[{scheme.partition('+')[0]}]`"
        )
    try:
        backend: OpenBackend = found[scheme].load()
    except ImportError as error:
        raise UnknownBackend(
            f"the backend for `{scheme}://` needs a library that is not installed ({error}): "
            f"`pip install carteiro[{scheme.partition('+')[0]}]`"
        ) from error
    return backend(url, clock=clock)
