"""By PyAV, which brings FFmpeg's libraries along: for machines on which nobody has installed anything."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from examples.video.media.jobs import Encode, Probed, Refused, Thumbnail

TURNS = {-90: ["transpose=clock"], 90: ["transpose=cclock"], 180: ["hflip", "vflip"], -180: ["hflip", "vflip"]}
"""By the degrees, counterclockwise, that a phone notes of how it was held: the filters that make up for it."""


def probe(source: str) -> Probed:
    try:
        with av.open(source) as file:
            for video in file.streams.video:
                if not video.disposition & Disposition.attached_pic:
                    return _probed(file, video)
    except FFmpegError as error:
        raise Refused(f"it cannot be read: {error.strerror}") from error
    raise Refused("there are no pictures in it")


def encode(job: Encode) -> Iterator[float]:
    """Yields how many seconds are done."""
    try:
        with av.open(job.source) as source, av.open(job.target, "w", options={"movflags": "+faststart"}) as target:
            yield from _encoded(job, source, target)
    except FFmpegError as error:
        raise Refused(f"it cannot be encoded: {error.strerror}") from error


def thumbnail(job: Thumbnail) -> None:
    try:
        with av.open(job.source) as file:
            video = file.streams[job.stream]
            assert isinstance(video, VideoStream)
            assert video.time_base is not None
            file.seek(int(job.at / video.time_base), stream=video)
            frame = _first_from(job.at, file, video)
    except FFmpegError as error:
        raise Refused(f"it cannot be read: {error.strerror}") from error
    (shown,) = _Screen(video, job.width, job.height, "yuvj420p").show(frame)
    Path(job.target).write_bytes(b"".join(bytes(packet) for packet in _jpeg(shown)))


def _probed(file: InputContainer, video: VideoStream) -> Probed:
    frame = next(_frames(file, video), None)
    if frame is None:
        raise Refused("there are no pictures in it")
    width, height = frame.width, frame.height
    if frame.rotation % 180:
        width, height = height, width
    seconds = file.duration / av.time_base if file.duration else _last(file, video)
    return Probed(seconds, width, height, video.index, "PyAV")


def _encoded(job: Encode, source: InputContainer, target: av.container.OutputContainer) -> Iterator[float]:
    video = source.streams[job.stream]
    assert isinstance(video, VideoStream)
    screen = _Screen(video, job.width, job.height, "yuv420p")
    pictures = target.add_stream("libx264", rate=video.average_rate, options={"preset": job.preset, "crf": "26"})
    pictures.width, pictures.height, pictures.pix_fmt = job.width, job.height, "yuv420p"
    if video.time_base is not None:
        pictures.codec_context.time_base = video.time_base  # by the rate, two pictures of a phone's can be at one time
    inputs: list[Stream] = [video]
    sound = None
    if source.streams.audio:
        inputs.append(source.streams.audio[0])
        sound = target.add_stream("aac", rate=48_000, bit_rate=128_000, layout="stereo")
    for packet in source.demux(inputs):
        for frame in _decoded(packet):
            if isinstance(frame, VideoFrame):
                for shown in screen.show(frame):
                    target.mux(pictures.encode(shown))
                if frame.time is not None:
                    yield frame.time
            elif sound is not None:
                target.mux(sound.encode(frame))
    target.mux(pictures.encode(None))
    if sound is not None:
        target.mux(sound.encode(None))


class _Screen:
    """Turns and scales pictures. It is made by the first one, which knows how they are turned."""

    def __init__(self, video: VideoStream, width: int, height: int, pixels: str) -> None:
        self._video = video
        self._filters = [f"scale={width}:{height}", f"format={pixels}"]
        self._graph: Graph | None = None

    def show(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        if self._graph is None:
            self._graph = self._made(TURNS.get(frame.rotation, []))
        self._graph.vpush(frame)
        while True:
            try:
                shown = self._graph.vpull()
            except (BlockingIOError, EOFError):
                return
            shown.pict_type = av.video.frame.PictureType.NONE  # the encoder decides which are whole pictures
            yield shown

    def _made(self, turns: list[str]) -> Graph:
        graph = Graph()
        nodes = [graph.add_buffer(template=self._video)]
        for said in (*turns, *self._filters):
            name, _, arguments = said.partition("=")
            nodes.append(graph.add(name, arguments or None))
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph


def _frames(file: InputContainer, video: VideoStream) -> Iterator[VideoFrame]:
    for packet in file.demux(video):
        yield from _decoded(packet)


def _decoded(packet: av.Packet[Any]) -> list[Any]:
    """What is in a packet; nothing, as with ffmpeg, if that is damaged."""
    try:
        return list(packet.decode())
    except InvalidDataError:
        return []


def _first_from(at: float, file: InputContainer, video: VideoStream) -> VideoFrame:
    """The first picture that is shown at this time or after, or the last one."""
    last = None
    for last in _frames(file, video):
        if last.time is None or last.time >= at:
            return last
    if last is None:
        raise Refused(f"there are no pictures in it after {at:.1f} s")
    return last


def _jpeg(frame: VideoFrame) -> Iterator[av.Packet[Any]]:
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, frame.format.name
    codec.time_base = Fraction(1, 25)  # it wants one, for a single picture too
    for one in (frame, None):
        yield from codec.encode(one)


def _last(file: InputContainer, video: VideoStream) -> float:
    """When the last packet begins, for files that do not say how long they are, as browsers record them."""
    times = (packet.pts for packet in file.demux(video))
    return float(max((time for time in times if time is not None), default=0) * (video.time_base or 0))
