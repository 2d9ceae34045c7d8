"""Retrieval and grounding are fine-tuned by the released code's losses: values and gradients, by a second computation of them.

As ``test_release_losses`` has it, but for what fine-tuning changes: no gradient is stopped, so that the text encoder learns from
the fusion encoder; captions of one picture are right answers of each other in contrast, and no negatives in matching; a
grounding batch has a box for each text and reads whole pictures.
"""

from dataclasses import replace

import pytest
import torch
from release_forward import Release, cross_entropy, softmax, unit
from test_release_losses import Pair, error, make_batch

from xtoolkit.batch import Batch

GROUPS = [(1, 4), (0, 2, 5)]  # rows that show one picture


class Attached:
    """A text encoder's states that cannot be detached: what pretraining stops goes on here."""

    def __init__(self, states):
        self.states = states

    def detach(self):
        return self.states


class Tuned(Release):
    """The losses of the released retrieval and grounding models."""

    def retrieval(self, batch: dict) -> dict:
        text, image = self.encode_text(batch["ids"]), self.encode_image(batch["image"])
        everything = torch.ones(image.shape[:2], dtype=torch.bool)
        v, t = unit(self.linear("vision_proj", image[:, 0])), unit(self.linear("text_proj", text[:, 0]))
        logits, same = v @ t.T / self.w["temp"], batch["idx"][:, None] == batch["idx"]
        target = same.double() / same.sum(1, keepdim=True)
        itc = -sum((torch.log(softmax(rows)) * target).sum() for rows in (logits, logits.T)) / (2 * len(v))
        mask, picture, words = batch["ids"] != 1, batch["image_negative"], batch["text_negative"]
        positive = self.fuse(text, mask, image, everything)[:, 0]
        negative = self.fuse(torch.cat([text, text[words]]), torch.cat([mask, mask[words]]),
                             torch.cat([image[picture], image]), torch.cat([everything, everything]))[:, 0]
        logits = self.head("itm_head", torch.cat([positive, negative]))
        return {"itc": itc, "itm": cross_entropy(logits, torch.tensor([1] * len(positive) + [0] * len(negative)))}

    def grounding(self, batch: dict) -> dict:
        l1, giou = self.boxes(batch, Attached(self.encode_text(batch["ids"])), self.encode_image(batch["image"])[batch["image_index"]])
        return {"bbp": l1 + giou}


@pytest.fixture(scope="module")
def pair():
    made = Pair(overrides=["stop_gradient=null", "losses.itc={type: ITC, sim: sim, targets: shared, ignore_same: false}"])
    made.release = Tuned(made.tensors, made.release.text_heads, giou_eps=1e-7)
    return made


def compare(pair, ours, theirs):
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    got, wanted = pair.gradients(ours, theirs)
    assert got.keys() == wanted.keys()
    most = max(g.abs().max().item() for g in wanted.values())
    errors = {n: error(got[n], wanted[n], most if n.endswith("key.bias") else 1e-3 * most) for n in wanted}
    assert max(errors.values()) < 1e-9, max(errors, key=errors.get)
    return got


def test_retrieval(pair):
    batch, given = make_batch("pairs")
    key = batch.image.key.clone()
    for rows in GROUPS:
        key[list(rows)] = int(key[rows[0]])
    batch = batch.with_fields(image=replace(batch.image, key=key))
    torch.manual_seed(11)
    image, text, legal = pair.model.losses["itm"].draw(pair.model.features(batch)["sim"], batch)
    assert legal.all() and (key[image] != key).all() and (key[text] != key).all(), "a picture is no negative of itself"
    theirs = pair.release.retrieval(given | {"idx": key, "image_negative": image, "text_negative": text})
    torch.manual_seed(11)
    ours = pair.model("pairs", batch)
    compare(pair, ours["itc"], theirs["itc"])
    moved = compare(pair, ours["itm"], theirs["itm"])
    assert any(name.startswith("text_encoder.") for name in moved)


def test_grounding(pair):
    batch, given = make_batch("region")
    real = torch.ones(7, dtype=torch.bool)
    batch = Batch(text=batch.text, image=batch.image, region=replace(batch.region, is_box=real))
    ours = pair.model("region", batch)["bbp"]
    moved = compare(pair, ours, pair.release.grounding(given | {"is_image": ~real})["bbp"])
    assert any(name.startswith("text_encoder.") for name in moved)
