"""What the URLs of all servers have in common: nothing that may be a password is shown, and whom TLS trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from carteiro import CarteiroError, ConfigurationError
from carteiro.ports.registry import open_backend
from carteiro.ports.urls import hidden, host_and_port, tls_context
from tests.servers.certificates import Certificates


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:s3cret@host:5672/shop?x=s3cret", "amqp://me:***@host:5672/shop"),
        ("redis://:s3cret@[::1]:1,two", "redis://:***@[::1]:1,two"),
        ("nats://s3cret@host:4222", "nats://***@host:4222"),
        ("nats://s3cret:@host", "nats://***@host"),
        ("redis://me:s3cret/0", "redis://me:***"),
        ("redis://:s3cret", "redis://:***"),
        ("redis://:123456", "redis://:***"),
        ("amqp://guest:s3:cret:5672", "amqp://guest:***"),
        ("amqp://me:pw@one:1,two:s3c,ret/x", "amqp://me:***@one:1,two:***"),
        ("amqp://me:[s3cret@host", "amqp://…"),
    ],
)
def test_an_address_is_shown_without_what_may_be_a_password(url: str, shown: str):
    assert hidden(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "amqp:/guest:s3cret@host/",
        "amqp:guest:s3cret@host",
        "guest:s3cret@host",
        "s3cret@host://x",
        "amqp:/guest:s3cret@host/?to=http://x",
        "s3cret",
        "redis://:s3cret",
        "redis://me:s3cret/0",
        "redis://me:s3cret:6379",
        "amqp://guest:s3cret",
        "amqp://guest:s3cret℀@host",
        "amqp://guest:[s3cret]@host",
    ],
)
def test_a_url_that_cannot_be_opened_is_refused_without_its_password(url: str):
    with pytest.raises(CarteiroError) as refused:
        open_backend(url)
    assert "s3cret" not in f"{refused.value}{refused.value.__cause__}"


def test_a_url_with_too_few_slashes_is_told_by_its_scheme():
    with pytest.raises(CarteiroError, match=r"^`amqp:…` is no broker URL: it begins with amqp://$"):
        open_backend("amqp:/guest:s3cret@host/")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", ("host", 7)),
        ("host:", ("host", 7)),
        ("host:1", ("host", 1)),
        ("", ("localhost", 7)),
        (":1", ("localhost", 1)),
        ("[::1]", ("::1", 7)),
        ("[::1]:1", ("::1", 1)),
    ],
)
def test_a_host_has_its_own_port_or_the_default(text: str, expected: tuple[str, int]):
    assert host_and_port("x://", text, 7) == expected


@pytest.mark.parametrize("port", ["port", "65536", "-1", "9" * 5000])
def test_a_port_that_is_none_is_refused_with_the_way_to_write_one(port: str):
    with pytest.raises(
        ConfigurationError, match=r"^`x://\*\*\*@one,two:\*\*\*` has a port that is no number up to 65535"
    ):
        host_and_port(f"x://me@one,two:{port}", f"two:{port}", 7)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    """What the system trusts is the authority of these, and no other."""
    (tmp_path / "system").mkdir()
    certificates = Certificates(tmp_path / "system")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "system"))
    return certificates


@pytest.fixture
def own(tmp_path: Path) -> Certificates:
    (tmp_path / "own").mkdir()
    return Certificates(tmp_path / "own")


def trusts(client: ssl.SSLContext, certificates: Certificates) -> bool:
    """Whether a client with this context accepts the server of these certificates."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate, certificates.key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname="localhost"),
        server.wrap_bio(up, down, server_side=True),
    ]
    while ends:
        try:
            ends[0].do_handshake()
            ends.pop(0)
        except ssl.SSLWantReadError:
            ends.reverse()
        except ssl.SSLCertVerificationError:
            return False
    return True


def test_without_authorities_of_its_own_a_url_trusts_the_systems(system: Certificates, own: Certificates):
    context = tls_context({})
    assert trusts(context, system)
    assert not trusts(context, own)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_ca_data"])
def test_with_authorities_of_its_own_a_url_trusts_these_only(option: str, system: Certificates, own: Certificates):
    context = tls_context({option: str(own.authority) if option == "ssl_ca_certs" else own.authority.read_text()})
    assert trusts(context, own)
    assert not trusts(context, system)


def test_with_a_folder_of_authorities_a_url_trusts_none_beside_it(system: Certificates, tmp_path: Path):
    assert not trusts(tls_context({"ssl_ca_path": str(tmp_path)}), system)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_ca_data", "ssl_ca_path"])
def test_an_empty_name_for_the_authorities_does_not_mean_the_systems(option: str):
    with pytest.raises(ConfigurationError, match="name the authorities to trust, or drop it"):
        tls_context({option: ""})
