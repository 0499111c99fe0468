"""PostgreSQL, as it is installed here: where its programs are, and a server as a test holds it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from tests.servers.process import ServerProcess, free_port, new_folder
from tests.servers.system import DebianPackage, System, installed

_DEBIAN = Path("/usr/lib/postgresql")
_USER = "nobody"


class Refused(Exception):
    """What psql said of a statement that failed, or of a server that does not answer."""


def programs() -> Path | None:
    """The folder of `postgres`, `initdb` and `psql`; Debian keeps it off the PATH."""
    found = [path.resolve().parent for path in installed("postgres")]
    if shutil.which("pg_createcluster"):  # which comes with a server of Debian's
        found += sorted(_DEBIAN.glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists()), None)


POSTGRESQL = System(
    "postgresql",
    what="PostgreSQL server",
    is_here=lambda: programs() is not None,
    hint="`apt-get install postgresql`, `brew install postgresql`, or what your system calls it",
    offers=(DebianPackage("postgresql", "pg_createcluster"),),
)


class PostgresServer(ServerProcess):
    """A server on a free port of 127.0.0.1; `with` starts it, and leaves nothing behind. Its user is postgres.

    It runs as nobody where the tests run as root, for it refuses that. Raises LookupError if there is none here.
    """

    def __init__(self) -> None:
        found = programs()
        if found is None:
            raise LookupError(POSTGRESQL.missing)
        self._programs = found
        self.port = free_port()
        folder = new_folder("postgresql")
        data = str(Path(folder.name) / "data")
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            os.chown(folder.name, user.pw_uid, user.pw_gid)
        initdb = [str(found / "initdb"), "--pgdata", data, "--username=postgres", "--auth=trust", "--no-sync"]
        done = subprocess.run([*_as_user(), *initdb, "--locale=C", "--encoding=UTF8"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": folder.name,
            "fsync": "off",
        }
        settings = [f"--{name}={value}" for name, value in options.items()]
        super().__init__(
            f"PostgreSQL on port {self.port}",
            folder,
            [*_as_user(), str(found / "postgres"), "-D", data, *settings],
            ready=lambda: self.says("SELECT 1"),
            not_yet=Refused,
        )

    @property
    def url(self) -> str:
        """`postgresql://…`, of the database postgres."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def says(self, statement: str, database: str = "postgres") -> str:
        """What it answers, as psql prints it: a line a row, with `|` between the columns. Raises Refused."""
        psql = [str(self._programs / "psql"), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
        asked = [*psql, "--command", statement, self.url_of(database)]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout.strip()

    def stop(self) -> None:
        """Stop it in good order. SIGTERM would have it wait for its clients to go."""
        if self.is_running:
            os.kill(self.pid, signal.SIGINT)
        super().stop()

    def close(self) -> None:
        if self.is_running:
            self.stop()  # killed, it would leave its shared memory
        super().close()


def _as_user() -> list[str]:
    """What runs a command as somebody who is not root. The promise of `tether.py` ends there, so it makes it anew."""
    if os.geteuid():
        return []
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "PostgreSQL does not run as root, and there is no setpriv to become somebody else"
    return [setpriv, f"--reuid={_USER}", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]
