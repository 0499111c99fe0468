"""What the URLs of all servers have in common: credentials, options, TLS, and that no password is ever shown."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from carteiro.errors import ConfigurationError

_LAST_PORT: Final = 65_535

TLS_OPTIONS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_ca_data",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_cert_reqs",
        "ssl_check_hostname",
        "ssl_ciphers",
    }
)
_NOT_SHOWN: Final = frozenset({"ssl_password", "ssl_ca_data"})


def split_url(url: str) -> SplitResult:
    """The URL in its parts; what cannot be one is not shown, since any part of it may be one of a password."""
    parts = _parts(url)
    if parts is None or parts.fragment or _is_torn(parts):
        raise ConfigurationError(
            f"the broker's URL, `{url.partition(':')[0]}://…`, cannot be read: within a user, a password or an option, "
            "percent-encode what is neither a letter nor a digit, such as `/` as %2F, `?` as %3F and `#` as %23"
        )
    return parts


def _parts(url: str) -> SplitResult | None:
    """None for what is no URL; the error that says why shows a part of it."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _is_torn(parts: SplitResult) -> bool:
    """Whether a `/` or a `?` in a password has ended the part of the URL that the password stands in."""
    place = parts.netloc
    if not place or "@" in place:
        return False
    port = _split_port(place)[1]
    return "@" in parts.path or ("@" in parts.query and (place[0] == ":" or bool(port and not port.isdecimal())))


def credentials(netloc: str) -> tuple[str | None, str | None, str]:
    """User, password, and the hosts as they stand there."""
    given, _, hosts = netloc.rpartition("@")
    username, separator, password = given.partition(":")
    return unquote(username) or None, unquote(password) if separator else None, hosts


def host_and_port(url: str, text: str, default_port: int) -> tuple[str, int]:
    """Of `host`, `host:port`, `[::1]:port`; an empty host is this machine."""
    host, port = _split_port(text)
    if not _is_port(port):
        raise ConfigurationError(
            f"`{hidden(url)}` has a port that is no number up to {_LAST_PORT}: write host:port, [IPv6]:port, and a "
            "user and password with an @ behind them"
        )
    return host.strip("[]") or "localhost", int(port or default_port)


def _split_port(text: str) -> tuple[str, str]:
    """The host, and what stands where its port would."""
    end = text.rfind("]") + 1 if text.startswith("[") else 0
    name, _, port = text[end:].partition(":")
    return text[:end] + name, port


def _is_port(text: str) -> bool:
    """A port may be left out."""
    return not text or (text.isdecimal() and len(text) <= len(str(_LAST_PORT)) and int(text) <= _LAST_PORT)


def whole_number(url: str, text: str, what: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"`{hidden(url)}` has `{text}` for its {what}, which is no number")
    return int(text)


def seconds_option(url: str, text: str | None, default: float) -> float:
    """A timeout, in seconds: over 0."""
    try:
        seconds = default if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigurationError(f"`{hidden(url)}` has `{text}` for a timeout, which is no number of seconds")
    return seconds


def is_true(text: str) -> bool:
    return text.lower() not in ("false", "0", "no", "off")


def hidden(url: str) -> str:
    """The URL without its password and its options, some of which are passwords too.

    A user without a password may be a token. A port that is none may be a password, and what follows it the rest of it.
    """
    parts = _parts(url)
    if parts is None:
        return f"{url.partition(':')[0]}://…"
    given, at, hosts = parts.netloc.rpartition("@")
    user, _, password = given.partition(":")
    who = f"{user}:***@" if password else "***@" if at else ""
    sound: list[str] = []
    for host in hosts.split(","):
        name, port = _split_port(host)
        if not _is_port(port):
            return f"{parts.scheme}://{who}{','.join([*sound, name])}:***"
        sound.append(host)
    return f"{parts.scheme}://{who}{hosts}{parts.path}"


def take_tls(url: str, options: dict[str, str], scheme: str) -> dict[str, str] | None:
    """Take the TLS options out of a URL's; None where the URL's scheme is not `scheme`, the one with TLS."""
    tls = {name: options.pop(name) for name in list(options) if name in TLS_OPTIONS}
    if urlsplit(url).scheme.partition("+")[0] != scheme:
        if tls:
            raise ConfigurationError(f"`{hidden(url)}` has TLS options, and is not {scheme}://")
        return None
    _demand(tls)
    return tls


def check_options(url: str, options: Mapping[str, str], known: frozenset[str]) -> None:
    """Raises ConfigurationError for the first option that is not known."""
    unknown = sorted(options.keys() - known)
    if unknown:
        among = ", ".join(sorted(known | TLS_OPTIONS))
        raise ConfigurationError(f"`{hidden(url)}` has an option `{unknown[0]}` that is none of: {among}")


def tls_context(tls: Mapping[str, str]) -> ssl.SSLContext:
    """What trusts the authorities that are named, or else the system's.

    Raises ConfigurationError for a certificate or key that cannot be read.
    """
    demand = _demand(tls)
    authorities = [tls.get(option) for option in ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data")]
    if "" in authorities:
        raise ConfigurationError("an ssl_ca_… option is empty: name the authorities to trust, or drop it")
    file, folder, data = authorities
    try:
        context = ssl.create_default_context(cafile=file, capath=folder, cadata=data)  # without any, the system's
        context.check_hostname = demand != ssl.CERT_NONE and is_true(tls.get("ssl_check_hostname", "true"))
        context.verify_mode = demand
        if "ssl_certfile" in tls:
            context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile"), tls.get("ssl_password"))
        if "ssl_ciphers" in tls:
            context.set_ciphers(tls["ssl_ciphers"])
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(f"{name}={value}" for name, value in tls.items() if name not in _NOT_SHOWN)
        raise ConfigurationError(f"the TLS options cannot be used ({error}): {named}") from error
    return context


def _demand(tls: Mapping[str, str]) -> ssl.VerifyMode:
    """What `ssl_cert_reqs` asks of the server's certificate."""
    asked = tls.get("ssl_cert_reqs", "required")
    levels = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
    if asked not in levels:
        raise ConfigurationError(f"ssl_cert_reqs is `{asked}`, and none of: {', '.join(levels)}")
    return levels[asked]
