"""The video service as its users have it: over HTTP, with workers in processes of their own, and in a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from examples.video.media import ffmpeg, pyav
from examples.video.media.jobs import Encode, Refused
from tests.e2e.browser import browser
from tests.e2e.cli import Running
from tests.e2e.clips import make_clip
from tests.servers.process import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a test that waits for something has failed."""
SLOW = {"VIDEO_PRESET": "veryslow"}
"""So that there is time to come between."""

needs_ffmpeg = pytest.mark.needs("ffmpeg")
needs_chromium = pytest.mark.needs("chromium")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of 854×480, with sound."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second, smaller than any size."""
    return make_clip(tmp_path_factory.mktemp("clips") / "tiny.mp4", width=160, height=90, seconds=1)


@pytest.fixture(params=[pytest.param("ffmpeg", marks=needs_ffmpeg), "PyAV"])
def tool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def without_ffmpeg() -> dict[str, str]:
    """The environment of a machine on which nobody installed it."""
    Path("bin").mkdir(exist_ok=True)
    return {"PATH": str(Path("bin").absolute())}


@contextmanager
def served(*arguments: str, **settings: str) -> Iterator[httpx.Client]:
    port = free_port()
    command = [sys.executable, "-m", "examples.video", "--port", str(port), *arguments]
    web = Running(command, Path.cwd(), settings, terminal=False)
    try:
        web.until("Uvicorn running")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            yield client
        web.send(signal.SIGINT)
        assert web.ended() == 0, web.output
    finally:
        web.kill()


@contextmanager
def worker(**settings: str) -> Iterator[tuple[Running, list[int]]]:
    """A process of `carteiro run`, and the pids of those of it that work."""
    command = [sys.executable, "-c", "from carteiro.cli import main; main()", "run", "examples.video.app:app"]
    running = Running(command, Path.cwd(), settings, terminal=False)
    try:
        yield running, running.ready()
    finally:
        running.kill()


def send(client: httpx.Client, file: Path | bytes, **query: str) -> str:
    """Upload it; returns the place where it can be followed."""
    content = file if isinstance(file, bytes) else file.read_bytes()
    answer = client.post("/videos", content=content, params=query)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def events(client: httpx.Client, place: str) -> Iterator[dict[str, Any]]:
    """How the video stands, each time that changes, to its end."""
    with client.stream("GET", f"{place}/events") as answer:
        for line in answer.iter_lines():
            name, _, data = line.partition(": ")
            if name == "data" and data:
                yield json.loads(data)


def ended(client: httpx.Client, place: str) -> dict[str, Any]:
    *_, last = events(client, place)
    assert last["over"]
    return last


def folder(place: str) -> Path:
    return Path("videos", place.rpartition("/")[2])


def steps(video: dict[str, Any]) -> dict[str, Any]:
    return {step["name"]: step for step in video["steps"]}


def statuses(video: dict[str, Any]) -> dict[str, str]:
    return {name: step["status"] for name, step in steps(video).items()}


def attempts(video: dict[str, Any], *names: str) -> list[int]:
    return [steps(video)[name]["attempt"] for name in names]


def until_encoding(following: Iterator[dict[str, Any]], name: str = "encode 480p") -> dict[str, Any]:
    """Return when some of it is encoded, and not all."""
    return next(video for video in following if steps(video)[name]["done"] > 0)


def encoders(pids: list[int], size: str = "") -> list[psutil.Process]:
    """The processes that encode for these workers."""
    children = [child for pid in pids for child in psutil.Process(pid).children()]
    return [child for child in children if f"{size}.mp4" in " ".join(child.cmdline())]


def left_behind() -> list[Path]:
    return list(Path("videos").glob("*/.*"))


# -- from an upload to what can be watched ---------------------------------------------------------------------------


def test_a_video_is_published_in_the_sizes_that_fit_and_each_step_tells_how_far_it_is(clip: Path, tool: str):
    environment = without_ffmpeg() if tool == "PyAV" else {}
    with served(**environment, VIDEO_PRESET="slow") as client:
        place = send(client, clip, name="Férias.mp4", email="ana@example.com")
        seen = list(events(client, place))
        video = seen[-1]
        assert (video["state"], video["name"]) == ("published", "Férias.mp4")
        assert set(statuses(video).values()) == {"succeeded"}
        assert any(0 < step["done"] < 1 for one in seen for step in one["steps"] if step["name"] == "encode 480p")
        assert [one["size"] for one in video["renditions"]] == ["480p", "240p"]
        for one in video["renditions"]:
            answer = client.get(f"{place}/files/{one['file']}")
            Path(one["file"]).write_bytes(answer.content)
            made = pyav.probe(one["file"])
            assert (made.width, made.height) == (one["width"], one["height"])
            assert made.seconds == pytest.approx(3, abs=0.2)
            assert len(answer.content) == one["bytes"]
        assert len(video["thumbnails"]) == 4
        for name in video["thumbnails"]:
            assert client.get(f"{place}/files/{name}").content.startswith(b"\xff\xd8\xff")
        assert client.get("/videos").json() == [video]
    assert json.loads((folder(place) / "published.json").read_text())["renditions"] == video["renditions"]
    assert "To: ana@example.com" in (folder(place) / "letter.eml").read_text()
    assert left_behind() == []


def test_on_redis_a_video_is_published(clip: Path, redis_url: str):
    with served(CARTEIRO_BROKER=redis_url) as client:
        video = ended(client, send(client, clip))
    assert [one["size"] for one in video["renditions"]] == ["480p", "240p"]


def test_players_can_seek_and_nothing_else_of_the_folder_is_given_away(clip: Path):
    with served() as client:
        place = send(client, clip)
        ended(client, place)
        some = client.get(f"{place}/files/240p.mp4", headers={"range": "bytes=4-7"})
        assert (some.status_code, some.content) == (206, b"ftyp")
        for name in ("source", "upload.json", "..%2Fupload.json", "720p.mp4"):
            assert client.get(f"{place}/files/{name}").status_code == 404, name
        assert client.get("/videos/000000000000").status_code == 404
        assert client.get("/videos/published.json").status_code == 422


@pytest.mark.parametrize("by", [pytest.param(ffmpeg, marks=needs_ffmpeg), pyav], ids=["ffmpeg", "PyAV"])
def test_what_a_phone_filmed_upright_is_upright(tmp_path: Path, by: Any):
    turned = make_clip(tmp_path / "turned.mp4", width=320, height=180, seconds=1, turned=-90)
    found = by.probe(str(turned))
    assert (found.width, found.height) == (180, 320)
    small = str(tmp_path / "small.mp4")
    list(by.encode(Encode(str(turned), small, found.stream, 136, 240, "ultrafast")))
    made = by.probe(small)
    assert (made.width, made.height) == (136, 240)


@pytest.mark.parametrize("by", [pytest.param(ffmpeg, marks=needs_ffmpeg), pyav], ids=["ffmpeg", "PyAV"])
def test_a_sound_alone_is_no_video(tmp_path: Path, by: Any):
    sound = make_clip(tmp_path / "sound.mp4", pictures=False, seconds=1)
    with pytest.raises(Refused, match="no pictures"):
        by.probe(str(sound))


# -- what is no video ------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_fails_and_says_why(tool: str):
    environment = without_ffmpeg() if tool == "PyAV" else {}
    with served(**environment) as client:
        video = ended(client, send(client, b"I am no video. " * 999))
    assert video["state"] == "failed"
    assert video["error"] == "probe: it cannot be read: Invalid data found when processing input"
    assert statuses(video)["probe"] == "failed"
    assert statuses(video)["encode 240p"] == statuses(video)["publish"] == "skipped"


def test_a_video_that_breaks_off_fails_and_publishes_nothing(clip: Path, tmp_path: Path):
    whole = tmp_path / "whole.mp4"
    list(pyav.encode(Encode(str(clip), str(whole), 0, 854, 480, "ultrafast")))  # its index comes first
    with served() as client:
        place = send(client, whole.read_bytes()[: whole.stat().st_size // 3])
        video = ended(client, place)
    assert video["state"] == "failed"
    assert "breaks off" in video["error"] or "no pictures in it after" in video["error"]
    assert not (folder(place) / "published.json").exists()


def test_an_upload_that_is_not_taken_leaves_nothing_behind(clip: Path):
    with served(VIDEO_MAX_SIZE="100kB") as client:
        announced = client.post("/videos", content=clip.read_bytes())
        assert announced.status_code == 413
        assert "larger than" in announced.json()["detail"]
        assert client.post("/videos", content=b"").status_code == 400
        assert client.post("/videos", content=b"x", params={"email": "nobody"}).status_code == 422
        unannounced = client.post("/videos", content=iter([b"x" * 60_000] * 2))
        assert unannounced.status_code == 413
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as half:
            half.sendall(b"POST /videos HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\nhalf of it")
        assert client.get("/videos").json() == []
    assert list(Path("videos").glob("*")) == []


# -- stopping it -----------------------------------------------------------------------------------------------------


def test_a_cancel_stops_the_encoders_and_nothing_is_published(clip: Path, tiny: Path, tool: str):
    environment = without_ffmpeg() if tool == "PyAV" else {}
    with served("--web-only") as client, worker(**SLOW, **environment) as (_, pids):
        place = send(client, clip)
        following = events(client, place)
        until_encoding(following)
        busy = [process for one in encoders(pids) for process in (one, *one.children())]
        assert len(busy) >= 1
        stopped = client.delete(place)
        assert (stopped.status_code, stopped.json()["state"]) == (200, "cancelled")
        assert psutil.wait_procs(busy, PATIENCE)[1] == []
        assert list(following)[-1]["state"] == "cancelled"
        again = client.delete(place)
        assert again.status_code == 409
        assert "is cancelled" in again.json()["detail"]
        assert ended(client, send(client, tiny))["state"] == "published"  # what encoded is free for others
    assert not (folder(place) / "published.json").exists()
    assert not (folder(place) / "failed.json").exists()
    assert left_behind() == []


def test_a_video_that_is_cancelled_while_no_worker_is_up_is_never_begun(clip: Path):
    with served("--web-only") as client:
        place = send(client, clip)
        assert client.get(f"{place}/files/240p.mp4").status_code == 404
        assert client.delete(place).json()["state"] == "cancelled"
        with worker():
            assert ended(client, send(client, b"no video"))["state"] == "failed"
        assert set(statuses(client.get(place).json()).values()) <= {"cancelled", "skipped"}
    assert {path.name for path in folder(place).iterdir()} == {"source", "upload.json", "run"}


# -- workers that die ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_worker_takes_over_from_one_that_was_killed_and_repeats_nothing_that_was_done(clip: Path, tool: str):
    environment = without_ffmpeg() if tool == "PyAV" else {}
    with served("--web-only") as client:
        with worker(**SLOW, **environment, VIDEO_LEASE="8") as (first, pids):
            place = send(client, clip)
            following = events(client, place)
            until_encoding(following)
            (encoder,) = encoders(pids, "480p")
            os.killpg(encoder.pid, signal.SIGSTOP)  # it stays in the middle while the others finish
            done = {"probe", "encode 720p", "encode 240p", "thumbnails"}
            others = (one for one in following if all(steps(one)[name]["status"] == "succeeded" for name in done))
            before = next(others)
            assert statuses(before)["encode 480p"] == "running"
            made = {path: path.stat().st_mtime_ns for path in folder(place).glob("[!.]*") if path.is_file()}
            for pid in {first.process.pid, *pids}:
                os.kill(pid, signal.SIGKILL)
            first.process.wait(PATIENCE)
            os.killpg(encoder.pid, signal.SIGCONT)
            assert psutil.wait_procs([encoder], PATIENCE)[1] == [], "it encodes for a worker that is gone"
        assert folder(place) / "480p.mp4" not in made
        with worker(**environment, VIDEO_PRESET="ultrafast"):
            video = ended(client, place)
    assert video["state"] == "published"
    assert attempts(video, *done) == attempts(before, *done)
    assert attempts(video, "encode 480p") > attempts(before, "encode 480p")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert pyav.probe(str(folder(place) / "480p.mp4")).seconds == pytest.approx(3, abs=0.2)
    assert left_behind() == []


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere():
    with served("--web-only") as client:
        page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text


@needs_chromium
def test_in_a_browser_a_video_is_uploaded_followed_and_played(clip: Path, tmp_path: Path):
    with served(VIDEO_PRESET="slow") as client, browser(tmp_path) as page:
        page.open(str(client.base_url))
        page.until("document.querySelector('.empty')")
        page.choose("input[type=file]", clip)
        page.run("document.querySelector('form button').click()")
        page.until("[...document.querySelectorAll('.steps span')].some((said) => said.textContent.endsWith('%'))")
        page.picture(tmp_path / "processing.png")
        page.until("document.querySelector('.published video')")
        links = page.run("[...document.querySelectorAll('.files a')].map((link) => link.textContent.slice(0, 14))")
        assert links == ["480p (854×480,", "240p (428×240,"]
        width = page.run("""new Promise((resolve, reject) => {
            const video = document.querySelector("video")
            video.onloadeddata = () => resolve(video.videoWidth)
            video.onerror = () => reject(video.error)
            video.muted = true
            video.play()
            if (video.readyState > 1) resolve(video.videoWidth)
        })""")
        assert width == 854
        page.picture(tmp_path / "published.png")
        assert page.troubles == []


@needs_chromium
def test_in_a_browser_a_failure_is_told_and_what_runs_is_stopped(clip: Path, tmp_path: Path):
    (tmp_path / "essay.mp4").write_bytes(b"I am no video. " * 999)
    with served(**SLOW) as client, browser(tmp_path) as page:
        page.open(str(client.base_url))
        page.choose("input[type=file]", tmp_path / "essay.mp4")
        page.run("document.querySelector('form button').click()")
        assert "it cannot be read" in page.until("document.querySelector('.failed .error')?.textContent")
        page.choose("input[type=file]", clip)
        page.run("document.querySelector('form button').click()")
        page.until("[...document.querySelectorAll('.steps span')].some((said) => said.textContent.endsWith('%'))")
        page.run("document.querySelector('.processing button').click()")
        page.until("document.querySelector('.cancelled')")
        page.picture(tmp_path / "stopped.png")
        assert page.troubles == []
