"""Video: frames as pictures of one batch, encoded alone, their mean over time in the place of a picture.

Shape letters: B videos, T frames of each, N patches, D width.
"""

import io
import random
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch, Field, ImageField, TextField, stable_key
from xtoolkit.data import items
from xtoolkit.data.blocks import Path, ShardBlock, Sources
from xtoolkit.data.datasets import Length
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Augment, Mean, Std
from xtoolkit.data.limits import MAX_PIXELS
from xtoolkit.data.masking import TextMask
from xtoolkit.data.process import ImageProcessor, TextProcessor
from xtoolkit.data.record import Record, Recorded
from xtoolkit.encoders.base import Encoder
from xtoolkit.features import Encoded
from xtoolkit.hints import Count
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY, ConfigError


@dataclass(frozen=True)
class ClipField(Field):
    """Videos whose frames are the pictures of ``$image``.

    What an encoder gave for all frames becomes a row a video, their mean, token by token: whoever reads an image encoder reads
    a video as it reads a picture.

    Attributes:
        frames: (B, T) int64, the rows of the frames in ``$image``, in their order.
        key: (B,) int64, equal where two rows show the same video.
        video_id: B names, on the host.
    """

    POOLS = "image"

    frames: Tensor
    key: Tensor | None = None
    video_id: list = field(default_factory=list)

    def pool(self, full: Encoded, whole: bool) -> Encoded:
        """(B, 1 + N, D) of B T frames (B T, 1 + N, D). A video has no parts: ``whole`` changes nothing."""
        return Encoded.of(full.tokens[self.frames].mean(1))

    @classmethod
    def collate(cls, values: list) -> "ClipField":
        """Of (T, key, name) a row; frames stand one video after the other."""
        counts, keys, names = zip(*values)
        return cls(torch.arange(len(values) * counts[0]).view(len(values), counts[0]), torch.tensor(keys), list(names))

    @classmethod
    def example(cls, rows: int, block: dict, sizes: dict) -> "ClipField | None":
        """With the data block's ``frames``; None where no encoder reads pictures."""
        if not sizes:
            return None
        frames = torch.arange(rows * block["frames"]).view(rows, -1)
        return cls(frames, torch.zeros(rows, dtype=torch.long), [str(row) for row in range(rows)])


@ENCODER_REGISTRY.register
class FramePositions(Encoder):
    """Adds to a video's tokens the mean of its frames' positions; on every stream without ``$clip`` it gives what it reads.

    YAML: {type: FramePositions, inputs: {image: vision, clip: $clip}, frames: 3}

    A position is added to all tokens of its frame before the mean over time; since both are sums, that is the mean of the frames
    plus the mean of their positions, and no frame's tokens are written a second time.

    Args:
        frames: positions, the most frames of a video.

    Source: X2-VLM (2211.12402) 3.2; the release's ``absolute_frame_pos_embed`` (1, T, 1, D), added to the summary token, too.
    It is drawn as N(0, 0.02) truncated at two deviations.
    """

    def __init__(self, widths: dict, frames: Count = 3):
        super().__init__()
        self.width = widths["image"]
        self.absolute_frame_pos_embed = nn.Parameter(torch.empty(1, frames, 1, self.width))
        nn.init.trunc_normal_(self.absolute_frame_pos_embed, std=0.02)

    def forward(self, *, view: str | None, image: Encoded, clip: ClipField | None = None) -> Encoded:
        """Returns (B, 1 + N, D). Raises ValueError where a video has more frames than there are positions."""
        if clip is None:
            return image
        frames, places = clip.frames.shape[1], self.absolute_frame_pos_embed
        if frames > places.shape[1]:
            raise ValueError(f"videos of {frames} frames do not fit FramePositions' {places.shape[1]}: raise its `frames`, or lower "
                             "the data's")
        return Encoded.of(image.tokens + places[:, :frames].mean(1), image.mask)


@DATASET_REGISTRY.register
class VideoFiles(Recorded):
    """Video files with captions, decoded by PyAV: one caption a visit. Not training: all, ``image_index`` says whose.

    YAML: {type: VideoFiles, path: data/webvid/train.jsonl, images: data/webvid, frames: 3}

    One frame of each second counts. In training any ``frames`` of these are drawn; else the middle ones of as many equal parts.

    Args:
        path: .jsonl, {"video": name, "captions": [...]} a line, or `caption`; `video_id` is optional.
        images: the folder of the videos; by default that of the table.
        frames: how many are taken of a video; of one with fewer seconds some are taken twice.
        augment: {crop_scale, flip, randaugment}, see Augment; the same for all frames of a video.
        others: sources: shards: max_tokens: clean: mask: mean: std: as Pairs has them.

    Raises:
        ConfigError: PyAV is not installed.

    Source: X2-VLM 3.2 (one frame a second) and 4.2 (three at random).
    """

    FIELDS = {"image": ImageField, "clip": ClipField, "text": TextField}
    MARKS = {"mask_text": "mask"}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, sources: Sources | None = None, images: str | None = None,
                 shards: ShardBlock | None = None, frames: Count = 3, max_tokens: Length = 30, clean: bool = True,
                 mask: TextMask | None = None, augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD):
        try:
            import av  # noqa: F401  asked here, so that a run says it before it starts
        except ImportError as error:
            raise ConfigError("VideoFiles decodes with PyAV: pip install 'xtoolkit[video]'") from error
        super().__init__(path, sources, shards, train, images)
        self.images = ImageProcessor(image_size, patch_size, mean, std, (augment or Augment()) if train else None)
        self._text, self._frames = TextProcessor(tokenizer, max_tokens, clean, mask, views), frames

    @classmethod
    def example(cls, block: dict, rows: int, sizes: dict, views: frozenset, length: int | None = None) -> Batch:
        batch = super().example(block, rows, sizes, views, length)
        if not sizes:
            return batch
        every, size = rows * block["frames"], sizes["image_size"]
        pixels = torch.zeros(every, 3, size, size, device="meta")
        return batch.with_fields(image=ImageField(pixels, torch.zeros(every, dtype=torch.long, device="meta"), None, [""] * every))

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        """One video with one of its texts; raises BadSample where there is no video to read."""
        record = Record(self._shards[source], sample)
        captions, named = record.captions(), record.meta.get("video")
        if not isinstance(named, str):
            raise record.bad("missing video", "it has no `video`: a file's name")
        texts = [self._text(text, rng, record.bad) for text in ([rng.choice(captions)] if self.train else captions)]
        frames = decoded(record.file(named), self._frames, rng if self.train else None, lambda why: record.bad("bad video", why))
        state, shown = rng.getstate(), []
        for frame in frames:
            rng.setstate(state)  # every frame is cropped, turned and coloured alike
            shown.append(self._image(record, frame, named, rng, captions))
        name = str(record.meta.get("video_id", named))
        return self._item(source, record, None, texts, frames=shown, clip=(len(shown), stable_key(name), name))

    def collate(self, loaded: list[items.Item]) -> Batch:
        """Frames of all videos are the pictures of the batch, in the order of ``ClipField.frames``."""
        batch = super().collate([replace(item, fields={n: v for n, v in item.fields.items() if n != "frames"}) for item in loaded])
        shown = [image for item in loaded for image in item.fields["frames"]]
        owner = torch.tensor([row for row, item in enumerate(loaded) for _ in item.texts])
        image = ImageField(torch.stack([i.pixels for i in shown]), torch.tensor([i.key for i in shown]), None, [i.name for i in shown])
        return batch.with_fields(image=image, **{} if self.train else {"image_index": owner})


def decoded(data: bytes, count: int, rng: random.Random | None, bad) -> list[bytes]:
    """``count`` frames of a video, each as the bytes of a picture, in their order.

    Args:
        data: the file.
        rng: draws which seconds; None: the middle ones of ``count`` equal parts.
        bad: ``bad(why)`` makes the error of a file that cannot be decoded.
    """
    import av

    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise bad("it has no pictures")
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise bad(f"its frames have more than {MAX_PIXELS} pixels")
            length = container.duration / av.time_base if container.duration else 0.0
            wanted = seconds(max(1, round(length)), count, rng)
            found: dict[int, bytes] = {}
            for place, frame in enumerate(container.decode(stream)):
                second = int(frame.time) if frame.time is not None else place  # a file without times has a frame a second
                if second not in found and (second in wanted or not found):
                    found[second] = _picture(frame)
                if second >= wanted[-1] and found:
                    break
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise bad(f"PyAV cannot decode it ({error})") from error
    if not found:
        raise bad("it has no frame")
    known = sorted(found)  # a length that promises too much: the last frame before stands for one that is not there
    return [found[max((s for s in known if s <= second), default=known[0])] for second in wanted]


def seconds(length: int, count: int, rng: random.Random | None) -> list[int]:
    """Which ``count`` of ``length`` seconds, ascending; where there are fewer, some twice."""
    if rng is None or length < count:
        return [int((part + 0.5) * length / count) for part in range(count)]
    return sorted(rng.sample(range(length), count))


def _picture(frame) -> bytes:
    """A frame as the bytes of a BMP, which loses nothing and is made fast."""
    file = io.BytesIO()
    frame.to_image().save(file, "BMP")
    return file.getvalue()
