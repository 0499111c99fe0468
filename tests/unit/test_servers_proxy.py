"""The proxy that stands between a client and a server, and is unkind when told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.servers.proxy import Proxy

PATIENCE = 30.0


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says back what it is told."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve)
        server.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        server.join(PATIENCE)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


def connect(proxy: Proxy, timeout: float = PATIENCE) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout)


def says(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return receive(connection, len(text))


def receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or what there was before the end."""
    came = b""
    while len(came) < size and (more := connection.recv(size - len(came))):
        came += more
    return came


def test_what_passes_is_unchanged_both_ways_and_to_the_end(proxy: Proxy):
    text = bytes(range(256)) * 4_000
    with connect(proxy) as connection:
        sending = threading.Thread(target=connection.sendall, args=(text,))
        sending.start()
        came = receive(connection, len(text))
        sending.join(PATIENCE)
        assert came == text
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_cut_resets_every_connection_and_accepts_new_ones(proxy: Proxy):
    with connect(proxy) as one, connect(proxy) as another:
        assert (says(one, b"hello"), says(another, b"hello")) == (b"hello", b"hello")

        assert proxy.cut() == proxy.cuts == 2

        for connection in (one, another):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    with connect(proxy) as anew:
        assert says(anew, b"hello") == b"hello"


def test_random_cuts_come_again_and_again_and_cease_when_it_is_healed(proxy: Proxy):
    proxy.cut_at_random(every=0.005, seed=1)
    while proxy.cuts < 10:
        try:
            with connect(proxy) as connection:
                while True:
                    if (came := says(connection, b"hello")) != b"hello":
                        assert b"hello".startswith(came)
                        break
        except ConnectionError:
            pass

    proxy.heal()

    with connect(proxy) as connection:
        assert says(connection, b"hello") == b"hello"


def test_a_proxy_that_refuses_keeps_what_it_has_and_listens_again_on_its_port_when_it_is_healed(proxy: Proxy):
    with connect(proxy) as connection:
        assert says(connection, b"hello") == b"hello"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert says(connection, b"hello") == b"hello"

    proxy.heal()

    with connect(proxy) as connection:
        assert says(connection, b"hello") == b"hello"


def test_a_stalled_proxy_accepts_and_passes_on_what_came_when_it_is_healed(proxy: Proxy):
    with connect(proxy) as old:
        assert says(old, b"hello") == b"hello"
        proxy.stall()
        with connect(proxy) as new:
            for connection in (old, new):
                connection.sendall(b"later")
                connection.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    connection.recv(1)

            proxy.heal()

            for connection in (old, new):
                connection.settimeout(PATIENCE)
                assert receive(connection, 5) == b"later"


def test_a_connection_to_a_server_that_is_down_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Proxy(port) as proxy:
        # The reset may come before `connect` has returned.
        with contextlib.suppress(ConnectionResetError), connect(proxy) as connection:
            assert connection.recv(1) == b""
        assert proxy.cuts == 0
