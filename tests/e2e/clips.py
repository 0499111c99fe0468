"""Video files for tests, made where they are needed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.filter import Graph


def make_clip(
    path: Path, *, width: int = 854, height: int = 480, seconds: float = 3, turned: int = 0, pictures: bool = True
) -> Path:
    """A test picture that moves, at 24 pictures a second, with a tone.

    `turned` is by how many degrees, counterclockwise, it says that it is to be turned.
    """
    with av.open(str(path), "w") as file:
        streams: list[tuple[Any, Graph]] = []
        if pictures:
            video = file.add_stream("mpeg4", rate=24, bit_rate=2_000_000)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            if turned:
                video.set_display_rotation(turned)
            picture = f"size={width}x{height}:rate=24:duration={seconds}"
            streams.append((video, _source(("testsrc2", picture), ("format", "yuv420p"), ("buffersink", ""))))
        sound = file.add_stream("aac", rate=48_000, layout="mono")
        sound.time_base = Fraction(1, 48_000)
        form = "sample_fmts=fltp:channel_layouts=mono"
        tone = f"frequency=440:duration={seconds}:sample_rate=48000"
        streams.append((sound, _source(("sine", tone), ("aformat", form), ("abuffersink", ""))))
        while streams:
            for stream, graph in list(streams):
                try:
                    frame: Any = graph.pull()
                except EOFError:
                    frame = None
                    streams.remove((stream, graph))
                file.mux(stream.encode(frame))
    return path


def _source(*filters: tuple[str, str]) -> Graph:
    graph = Graph()
    graph.link_nodes(*(graph.add(name, said or None) for name, said in filters)).configure()
    return graph
