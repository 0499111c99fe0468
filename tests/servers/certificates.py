"""TLS certificates made on the fly: an authority that nobody else trusts, one for servers, one for clients."""

from __future__ import annotations

from pathlib import Path

import trustme


class Certificates:
    """PEM files: `authority` has signed `certificate`, for localhost and 127.0.0.1, and `client_certificate`."""

    def __init__(self, folder: Path) -> None:
        self.authority = folder / "authority.pem"
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"
        self.client_certificate = folder / "client.pem"
        self.client_key = folder / "client.key"

        authority = trustme.CA()
        server = authority.issue_cert("localhost", "127.0.0.1")
        client = authority.issue_cert("carteiro-tests")
        authority.cert_pem.write_to_path(str(self.authority))
        for issued, certificate, key in [
            (server, self.certificate, self.key),
            (client, self.client_certificate, self.client_key),
        ]:
            key.touch(mode=0o600)
            issued.private_key_pem.write_to_path(str(key))
            for blob in issued.cert_chain_pems:
                blob.write_to_path(str(certificate), append=True)
