"""A real browser: headless Chromium, driven through its debugging pipe, which needs no driver and no port.

A page waits in its own terms: `until` resolves when the page itself comes to look as asked.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds after which a page that does not come to look as asked has failed."""


class Page:
    """One page of a browser that is open. `troubles` are the errors that its scripts did not catch."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads = reads
        self._writes = writes
        self._number = 0
        self._rest = b""
        self._loaded = 0
        self._session: str | None = None
        self.troubles: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Runtime.enable")
        self.ask("Page.enable")

    def open(self, url: str) -> None:
        """Return when it is loaded."""
        before = self._loaded
        said = self.ask("Page.navigate", url=url)
        assert "errorText" not in said, said
        while self._loaded == before:
            self._hear()

    def run(self, script: str) -> Any:
        """What this expression is, or resolves to, in the page."""
        said = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, condition: str) -> Any:
        """What this expression is once it is true. It is looked at whenever the page changes."""
        return self.run(f"""new Promise((resolve, reject) => {{
            const look = () => {{ const seen = ({condition}); if (seen) {{ watching.disconnect(); resolve(seen) }} }}
            const watching = new MutationObserver(look)
            watching.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }})
            setTimeout(() => reject(new Error("this never came true: " + {json.dumps(condition)}
                                              + "\\n" + document.body.innerText)), {PATIENCE * 1000:.0f})
            look()
        }})""")

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file as a person does."""
        chosen = self.ask("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.ask("DOM.setFileInputFiles", files=[str(file)], objectId=chosen["result"]["objectId"])

    def picture(self, path: Path) -> None:
        """As PNG, of the whole page."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the browser's own protocol, and its answer."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._writes, json.dumps(command).encode() + b"\0")
        while (said := self._hear()).get("id") != self._number:
            pass
        assert "error" not in said, said["error"]
        return dict(said["result"])

    def _hear(self) -> dict[str, Any]:
        said = self._read()
        if said.get("method") == "Runtime.exceptionThrown":
            self.troubles.append(said["params"]["exceptionDetails"]["exception"]["description"])
        elif said.get("method") == "Page.loadEventFired":
            self._loaded += 1
        return said

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._reads, 1 << 20)
            assert data, "the browser is gone"
            self._rest += data
        said, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(said))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose profile is in `folder`."""
    program = shutil.which("chromium")
    assert program is not None, 'mark the test with needs("chromium")'
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # It reads commands from 3 and writes answers to 4: what is there now has to be out of the way.
    high_in, high_out = (fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (theirs_in, theirs_out))

    def hand_over() -> None:
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    options = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--mute-audio",
        "--window-size=900,1000",
    )
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *options, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=hand_over,  # noqa: PLW1509  # nothing else forks here meanwhile
            pass_fds=(3, 4),
            start_new_session=True,
        )
    for end in (theirs_in, theirs_out, high_in, high_out):
        os.close(end)
    try:
        yield Page(ours_in, ours_out)
    finally:
        os.close(ours_out)  # it closes with its pipe
        os.close(ours_in)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
