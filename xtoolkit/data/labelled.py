"""The datasets of tasks: texts, pictures and both with a label, questions with answers, videos.

Evaluated, the batch also has, on the host, ``record``, the json of each sample, or each row of a table by its columns, for what a
score or a server's file needs: question ids, all answers; and ``source``, the name of each row's source. Of a table the picture
is called ``image`` and the text ``captions``, whatever their columns are.
"""

import random
from typing import Literal

import torch
from torch import Tensor

from xtoolkit.batch import Batch, ImageField, TextField, stable_key
from xtoolkit.data import items
from xtoolkit.data.candidates import Candidates, candidate_paths, missing_candidates
from xtoolkit.data.blocks import Path, ShardBlock, Sources
from xtoolkit.data.classes import Classes
from xtoolkit.data.control import OtherPictures
from xtoolkit.data.datasets import Length
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Augment, Mean, Std
from xtoolkit.data.masking import TextMask
from xtoolkit.data.process import ImageProcessor, TextProcessor
from xtoolkit.data.record import Record, Recorded
from xtoolkit.fields import AnswerField, LabelField, VideoField
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, Count


def _pictures(image_size, patch_size, mean, std, augment: Augment | None, train: bool) -> ImageProcessor:
    return ImageProcessor(image_size, patch_size, mean, std, (augment or Augment()) if train else None)


@DATASET_REGISTRY.register
class LabelledText(Recorded):
    """Texts, or two texts as one sequence, each with a label: GLUE's tasks.

    Two texts are `<s> a </s></s> b </s>` for tokenizers like RoBERTa's, `[CLS] a [SEP] b [SEP]` for those like BERT's. There
    are no token types: RoBERTa has none, and a BERT reads both texts as its first.

    YAML: {type: LabelledText, path: data/rte/train.jsonl, sentences: 2, classes: [not_entailment, entailment]}

    Args:
        path: .jsonl, {"text", "second_text", "label"} a line; also `sentence` or `sentence1`, and `sentence2`.
        classes: their names in order, how many, or a path, see ``class_names``; null: `label` is a target of regression.
        sentences: 2: a pair of texts a record.
        max_tokens: longest text or pair, specials counted; what is longer is cut, of a pair the longer text first.
        others: sources: shards: clean: as Text has them.
    """

    FIELDS = {"text": TextField, "label": LabelField}

    def __init__(self, tokenizer, train: bool = True, path: Path | None = None, sources: Sources | None = None,
                 shards: ShardBlock | None = None, classes: Classes | None = None, sentences: Literal[1, 2] = 1,
                 max_tokens: Length = 128, clean: bool = False):
        super().__init__(path, sources, shards, train, classes=classes)
        if sentences == 2 and max_tokens < 6:
            raise ConfigError(f"data.max_tokens: {max_tokens} have no room for two texts and their specials; 6 have")
        self._text, self._sentences = TextProcessor(tokenizer, max_tokens, clean), sentences

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record = Record(self._shards[source], sample)
        texts, make = [record.text("sentence", "sentence1", "text")], self._text
        if self._sentences == 2:
            texts, make = [*texts, record.text("second_text", "sentence2")], self._text.pair
        return self._item(source, record, None, [make(*texts, rng, record.bad)], label=self._label(record))


@DATASET_REGISTRY.register
class LabelledImages(Recorded):
    """Pictures with a label.

    YAML: {type: LabelledImages, path: data/pets/train-*.tar, classes: 37}

    Args:
        path: tars whose json has `label`; or .jsonl, {"image", "label"} a line.
        classes: as LabelledText has them.
        others: sources: images: shards: augment: mean: std: as Images has them.
    """

    FIELDS = {"image": ImageField, "label": LabelField}

    def __init__(self, image_size, patch_size, train: bool = True, path: Path | None = None, images: str | None = None,
                 sources: Sources | None = None, shards: ShardBlock | None = None, classes: Classes | None = None,
                 augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD):
        super().__init__(path, sources, shards, train, images, classes)
        self.images = _pictures(image_size, patch_size, mean, std, augment, train)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record = Record(self._shards[source], sample)
        return self._item(source, record, self._image(record, *record.picture(), rng), [], label=self._label(record))


@DATASET_REGISTRY.register
class LabelledPairs(Recorded):
    """A picture with a text and a label of both: SNLI-VE, Hateful Memes.

    YAML: {type: LabelledPairs, path: data/ve/train.jsonl, images: flickr30k, classes: [contradiction, neutral, entailment]}

    Args:
        path: .jsonl, {"image", "sentence", "label"} a line; or tars whose json has the last two. `sentence` may be `text`, and
            `image` be `img`, as in Hateful Memes' own files.
        classes: as LabelledText has them.
        shuffle_pictures: a control: each record is shown another one's picture, the same at every visit; see OtherPictures.
        secret: an evaluation's records may lack `label`, as in a benchmark's test file: they are answered, and not scored.
        others: sources: images: shards: max_tokens: clean: augment: mean: std: as Pairs has them.
    """

    FIELDS = {"image": ImageField, "text": TextField, "label": LabelField}

    def __init__(self, tokenizer, image_size, patch_size, train: bool = True, path: Path | None = None,
                 sources: Sources | None = None, images: str | None = None, shards: ShardBlock | None = None,
                 classes: Classes | None = None, max_tokens: Length = 30, clean: bool = True,
                 augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD, shuffle_pictures: bool = False,
                 secret: bool = False):
        super().__init__(path, sources, shards, train, images, classes)
        self.secret = secret
        self._others = OtherPictures(self._shards) if shuffle_pictures else None
        self.images = _pictures(image_size, patch_size, mean, std, augment, train)
        self._text = TextProcessor(tokenizer, max_tokens, clean)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record = Record(self._shards[source], sample)
        said = record.text("sentence", "text")
        of = 2 if "second" in self.FIELDS else 1
        shown = self._others(source, sample, of) if self._others else record
        image = lambda place: self._image(shown, *shown.picture(place, of), rng, [said])
        fields = {"label": self._label(record)} | ({"second": image(1)} if of == 2 else {})
        return self._item(source, record, image(0), [self._text(said, rng, record.bad)], **fields)


@DATASET_REGISTRY.register
class LabelledTwoImages(LabelledPairs):
    """Two pictures with one text and a label: NLVR2.

    YAML: {type: LabelledTwoImages, path: data/nlvr2/train.jsonl, images: nlvr2, classes: ["False", "True"]}

    Args:
        path: .jsonl, {"images": [first, second], "sentence", "label"} a line; or `image` and `second` instead of `images`.
        augment: of each picture on its own.
        others: sources: images: shards: classes: max_tokens: clean: mean: std: shuffle_pictures: secret: as LabelledPairs has
            them.
    """

    FIELDS = LabelledPairs.FIELDS | {"second": ImageField}


@DATASET_REGISTRY.register
class Questions(Recorded):
    """A picture, a question and its answers, each with a weight: VQA. Not training: without answers too.

    YAML: {type: Questions, path: data/vqa/train.jsonl, images: coco, candidates: data/vqa/answers.txt}

    Not training, a batch also has ``candidates``, for each row the tuple of all of them, where there are any.

    Args:
        path: .jsonl, {"image", "question", "question_id", "answers": [{"text", "weight"}]} a line, or X-VLM's `answer` and
            `weight`; or tars whose json has these, but for `image`.
        max_tokens: longest question, its two specials counted; what is longer is cut.
        answer_tokens: longest answer, likewise.
        candidates: the answers that a model chooses from or ranks: a list, or a file of one a line. Of each answer of a record
            its number among them is told, as it is or as VQA v2's evaluation normalises it.
        clean: the questions as captions are; answers stay as they are.
        augment: {crop_scale, flip, randaugment}, see Augment; not mirrored where question or answer says left or right.
        shuffle_pictures: as LabelledPairs has it.
        others: sources: images: shards: mean: std: as Images has them.
    """

    FIELDS = {"image": ImageField, "text": TextField, "answers": AnswerField}

    def __init__(self, tokenizer, image_size, patch_size, train: bool = True, path: Path | None = None,
                 sources: Sources | None = None, images: str | None = None, shards: ShardBlock | None = None,
                 max_tokens: Length = 30, answer_tokens: Length = 10, candidates: list[str] | str | None = None,
                 clean: bool = True, augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD,
                 shuffle_pictures: bool = False):
        super().__init__(path, sources, shards, train, images)
        self._others = OtherPictures(self._shards) if shuffle_pictures else None
        self.images = _pictures(image_size, patch_size, mean, std, augment, train)
        self._candidates = None if candidates is None else Candidates(candidates)
        self.candidates = self._candidates and self._candidates.answers
        self._text, self._answer = TextProcessor(tokenizer, max_tokens, clean), TextProcessor(tokenizer, answer_tokens)

    @classmethod
    def paths(cls, block: dict) -> list[tuple[str, str]]:
        return super().paths(block) + candidate_paths(block)

    @classmethod
    def missing(cls, block: dict) -> list[tuple[str, str]]:
        return super().missing(block | {"candidates": None}) + missing_candidates(block)

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record = Record(self._shards[source], sample)
        asked, answers = record.text("question", "text"), record.answers()
        if self.train and not answers:
            raise record.bad("no answer", "it has no `answers` and no `answer`")
        named = self._candidates
        numbers = () if named is None else ([named.number(text) for text, _ in answers], len(named.answers))
        texts = [self._answer(text, rng, record.bad) for text, _ in answers]
        said = items.Answers(texts, [weight for _, weight in answers], *numbers)
        shown = self._others(source, sample) if self._others else record
        image = self._image(shown, *shown.picture(), rng, [asked, *(text for text, _ in answers)])
        told = {} if self.train or named is None else {"candidates": named.answers}
        return self._item(source, record, image, [self._text(asked, rng, record.bad)], answers=said, **told)


@DATASET_REGISTRY.register
class Videos(Recorded):
    """Videos as lists of pictures, with captions: one of them a visit. Not training: all, ``image_index`` says whose.

    YAML: {type: Videos, path: data/msrvtt/train.jsonl, images: data/msrvtt/frames, frames: 4}

    Args:
        path: .jsonl, {"frames": [name, ...], "captions": [...]} a line, or `caption`; `video_id` is optional.
        frames: how many are taken, one of each of as many equal parts: any of it in training, else the middle one.
        augment: {crop_scale, flip, randaugment}, see Augment; the same for all frames of a video.
        others: sources: images: shards: max_tokens: clean: mask: mean: std: as Pairs has them.
    """

    FIELDS = {"video": VideoField, "text": TextField}
    MARKS = {"mask_text": "mask"}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, sources: Sources | None = None, images: str | None = None,
                 shards: ShardBlock | None = None, frames: Count = 4, max_tokens: Length = 30, clean: bool = True,
                 mask: TextMask | None = None, augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD):
        super().__init__(path, sources, shards, train, images)
        self.images = _pictures(image_size, patch_size, mean, std, augment, train)
        self._text, self._frames = TextProcessor(tokenizer, max_tokens, clean, mask, views), frames

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        record = Record(self._shards[source], sample)
        captions = record.captions()
        texts = [self._text(text, rng, record.bad) for text in ([rng.choice(captions)] if self.train else captions)]
        names, state, shown = record.frames(self._frames, rng if self.train else None), rng.getstate(), []
        for name in names:
            rng.setstate(state)  # every frame is cropped, turned and coloured alike
            shown.append(self._image(record, record.file(name), name, rng, captions).pixels)
        name = str(record.meta.get("video_id", record.name))
        return self._item(source, record, None, texts, video=(torch.stack(shown), stable_key(name), name))

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        frames = [(f"{name}, frame {n}", frame) for name, pixels in zip(batch["video"].video_id, batch["video"].pixels)
                  for n, frame in enumerate(pixels)]
        return {name: self.images.picture(frame) for name, frame in frames}

    def collate(self, loaded: list[items.Item]) -> Batch:
        owner = torch.tensor([row for row, item in enumerate(loaded) for _ in item.texts])
        return super().collate(loaded).with_fields(**{} if self.train else {"image_index": owner})
