"""A small set of videos, made here: six of five seconds, each of one colour that says by its brightness which second it is."""

import json

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs the extra `video`")
CAPTIONS = ["a red square", "a green square moves", "something blue", "a grey evening", "white snow", "a yellow bird"]
COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (120, 120, 120), (250, 250, 250), (230, 230, 20)]


def write_videos(folder):
    """Writes them and ``train.jsonl``, which names them with two captions each; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, colour in enumerate(COLOURS):
        write_video(folder / f"{n}.mp4", colour, 5)
    lines = [{"video": f"{n}.mp4", "captions": [caption, caption + " again"]} for n, caption in enumerate(CAPTIONS)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def write_video(path, colour, length, rate=4):
    """A video whose brightness says the second: second s is ``colour`` scaled by (s + 1) / (length + 1)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for n in range(length * rate):
            shade = np.array(colour) * (n // rate + 1) / (length + 1)
            frame = av.VideoFrame.from_ndarray(np.broadcast_to(shade.astype(np.uint8), (64, 64, 3)).copy(), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
