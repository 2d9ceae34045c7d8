"""A checkpoint under the released names gives the released code's losses and gradients, by a second computation of them.

``release_forward`` computes every loss in plain float64 from the released tensors. The toolkit loads the same tensors through
the converter into the model of ``projects/xfm/base.yaml`` at small widths. Texts, masks and negatives are given: both get the
negatives that ITM draws under the seed. Gradients go back through the inverse conversion and are compared by released name.

Where the toolkit means to differ from the release, so that the comparison has to choose its inputs or options:

- Rows that show the same picture, box or text are no negatives of each other here (``ignore_same``). In the release they are;
  both agree on batches without such rows, and with ``ignore_same: false`` on all.
- GIoU divides by areas + 1e-7, so that a box without area has a gradient; the release divides by the area. The second
  computation is told so; without that they differ by less than a hundred thousandth on these boxes. A target without area,
  which drops the GIoU of the release's whole batch, and a batch without a real box, where it divides by 0, are not given.
- The release pads texts to one length and masked tokens to one number; ours are trimmed. The second computation gets the padding.
- ITM's positives and negatives are two passes in the release, one here; MIM's target has a graph that is thrown away there and
  none here. Neither changes a number.
- In training both would drop and each draw its own: dropout and drop path are 0 here.
- On several processes the release scales ITC's gradient by 1 / W: one process here.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from release_forward import Release, offsets
from release_names import release_state

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, ImageField, RegionField, TextField
from xtoolkit.cli.releases import releases
from xtoolkit.model import Model

from_release, to_release = releases()["xfm"].from_release, releases()["xfm"].to_release
BASE = Path(__file__).resolve().parents[2] / "projects/xfm/base.yaml"
SIZES = dict(width=24, layers=2, patch=8, grid=4, heads=3, vocab=50, positions=20, dim=8)
SMALL = ["encoders.vision.patch_size=8", "encoders.vision.image_size=32", "encoders.vision.drop_path=0",
         "encoders.text.vocab_size=50", "encoders.text.max_positions=20", "encoders.text.dropout=0",
         "encoders.fusion.dropout=0", "encoders.vision_proj.dim=8", "encoders.text_proj.dim=8",
         *(f"encoders.{e}.{k}" for e in ("vision", "text") for k in ("width=24", "init=null")),
         *(f"encoders.{e}.{k}" for e in ("vision", "text", "fusion") for k in ("layers=2", "heads=3"))]
BOS, PAD, EOS, MASK = 0, 1, 2, 4
# What the release stores twice; gradients are asked for under the second name.
TIED = {f"{e}_encoder.lm_head.decoder.{a}": f"{e}_encoder.{b}" for e in ("text", "fusion")
        for a, b in (("weight", "roberta.embeddings.word_embeddings.weight"), ("bias", "lm_head.bias"))}
LOSSES = {"text": {"mlm": ["mlm"]}, "image": {"mim": ["mim"]},
          "pairs": {"itc": ["itc"], "itm": ["itm"], "imlm": ["imlm"], "mim": ["mim"]},
          "region": {"itc": ["itc"], "itm": ["itm"], "imlm": ["imlm"], "bbp": ["bbp.l1", "bbp.giou"]}}


def texts(rows: int, g, same=()) -> tuple[TextField, dict]:
    """Texts of many lengths, four tokens of ten masked: as ours, and padded as the release has them. ``same``: (a, b) as row b."""
    length = 9
    ids = torch.full((rows, length), PAD)
    for row in range(rows):
        n = length if row == 0 else int(torch.randint(4, length + 1, (1,), generator=g))
        ids[row, :n] = torch.cat([torch.tensor([BOS]), torch.randint(5, SIZES["vocab"], (n - 2,), generator=g),
                                  torch.tensor([EOS])])
    for a, b in same:
        ids[b] = ids[a]
    chosen = (ids > MASK) & (torch.rand(ids.shape, generator=g) < 0.4)
    chosen[0, 1:5] = True
    other = torch.randint(5, SIZES["vocab"], ids.shape, generator=g)
    how = torch.rand(ids.shape, generator=g)  # mostly the mask, else another word, else the word itself
    masked = torch.where(chosen, torch.where(how < 0.7, MASK, torch.where(how < 0.85, other, ids)), ids)
    flat = chosen.flatten().nonzero()[:, 0]
    key = torch.tensor([hash(tuple(row.tolist())) >> 1 for row in ids])
    ours = TextField(ids, ids != PAD, key, masked, flat, ids.flatten()[flat])
    positions, labels = torch.zeros(rows, 7, dtype=torch.long), torch.full((rows, 7), -100)
    for row in range(rows):
        found = chosen[row].nonzero()[:, 0]
        positions[row, :len(found)], labels[row, :len(found)] = found, ids[row, found]
    padded = lambda t: torch.nn.functional.pad(t, (0, 3), value=PAD)
    return ours, {"ids": padded(ids), "masked_ids": padded(masked), "masked_pos": positions, "masked_labels": labels}


def pictures(count: int, g, dtype) -> tuple[ImageField, dict]:
    pixels, patches = torch.randn(count, 3, 32, 32, generator=g, dtype=torch.float64), SIZES["grid"] ** 2
    mask = torch.rand(count, patches, generator=g).argsort(1) < 6
    ours = ImageField(pixels.to(dtype), torch.arange(count), mask, [f"picture {i}" for i in range(count)])
    return ours, {"image": pixels.to(dtype).double(), "patch_mask": mask}


def boxes(g, dtype) -> tuple[RegionField, dict]:
    """Seven regions of three pictures; the last describes its whole picture."""
    index = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    centre, side = 0.3 + 0.4 * torch.rand(7, 2, generator=g), 0.1 + 0.4 * torch.rand(7, 2, generator=g)
    box = torch.cat([centre, side], 1).double().to(dtype)
    box[6] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    touched = torch.rand(7, SIZES["grid"] ** 2, generator=g) < 0.4
    touched[:, 5], touched[6] = True, True
    real = torch.arange(7) != 6
    return RegionField(index, box, touched, real, torch.arange(7)), \
        {"image_index": index, "box": box.double(), "box_patches": touched, "is_image": ~real}


def make_batch(stream: str, dtype=torch.float64, same=()) -> tuple[Batch, dict]:
    """One batch, as ours and as the release's."""
    g = torch.Generator().manual_seed(3)
    rows = {"text": 5, "pairs": 6, "region": 7}
    text = texts(rows[stream], g, same) if stream in rows else (None, {})
    image = pictures({"image": 4, "pairs": 6, "region": 3}[stream], g, dtype) if stream != "text" else (None, {})
    region = boxes(g, dtype) if stream == "region" else (None, {})
    if region[0] is not None:
        image = replace(image[0], patch_mask=None), image[1]
    return Batch(text=text[0], image=image[0], region=region[0]), text[1] | image[1] | region[1]


class Pair:
    """The toolkit's model in ``dtype`` and the release's tensors in float64, of one checkpoint."""

    def __init__(self, dtype=torch.float64, temp=0.09, overrides=()):
        self.dtype = dtype
        self.recipe = recipes.load(str(BASE), [*SMALL, *overrides], missing_files=False)
        state = release_state(seed=1, std=0.2, **SIZES) | {"temp": torch.tensor(temp)}
        state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
        self.tensors = {n: t.double().requires_grad_() for n, t in state.items() if t.is_floating_point()}
        self.model = Model(self.recipe).to(dtype).train()
        self.model.load_state_dict(from_release(state, self.recipe)[0], strict=True)
        self.release = Release(self.tensors, text_heads=SIZES["heads"], giou_eps=1e-7)

    def losses(self, stream: str, same=()) -> tuple[dict, dict, dict]:
        """Ours, the parts that we log, and the release's, of one batch with the negatives that ITM draws."""
        batch, given = make_batch(stream, self.dtype, same)
        if stream in ("pairs", "region"):
            torch.manual_seed(11)
            image, text, legal = self.model.losses["itm"].draw(self.model.features(batch)["sim"], batch)
            assert legal.all() and not torch.equal(image, text)
            given |= {"image_negative": image, "text_negative": text}
        torch.manual_seed(11)
        ours = self.model(stream, batch)
        return ours, ours.log, getattr(self.release, stream)(given)

    def gradients(self, ours, theirs) -> tuple[dict, dict]:
        """{released name: gradient} of our loss, through the inverse conversion, and of the release's; what it does not move
        is absent."""
        named = dict(self.model.named_parameters())
        found = torch.autograd.grad(ours, list(named.values()), retain_graph=True, allow_unused=True)
        back, _ = to_release({n: g for n, g in zip(named, found) if g is not None}, self.recipe)
        back = {TIED.get(n, n): g.double() for n, g in back.items() if g.is_floating_point()}
        want = torch.autograd.grad(theirs, list(self.tensors.values()), retain_graph=True, allow_unused=True)
        return back, {n: g for n, g in zip(self.tensors, want) if g is not None}


@pytest.fixture(scope="module")
def exact():
    return Pair()


def error(got, want, floor) -> float:
    """Largest difference over the larger of the tensor's own largest value and ``floor``."""
    return ((got - want).abs().max() / want.abs().max().clamp(min=floor)).item()


def check(pair, stream, tolerance):
    ours, log, theirs = pair.losses(stream)
    assert set(ours) == set(LOSSES[stream])
    for loss, parts in LOSSES[stream].items():
        want = sum(theirs[part] for part in parts)
        assert ours[loss].item() == pytest.approx(want.item(), rel=tolerance), loss
        for part in parts:
            if part in log:
                assert log[part].item() == pytest.approx(theirs[part].item(), rel=tolerance), part
        got, wanted = pair.gradients(ours[loss], want)
        assert got.keys() == wanted.keys(), loss
        # A bias on keys has no true gradient, only rounding: it is held against the largest gradient of all.
        most = max(g.abs().max().item() for g in wanted.values())
        errors = {n: error(got[n], wanted[n], most if n.endswith("key.bias") else 1e-3 * most) for n in wanted}
        worst = max(errors, key=errors.get)
        assert got[worst].shape == wanted[worst].shape and errors[worst] < tolerance, (loss, worst, errors[worst])


@pytest.mark.parametrize("stream", LOSSES)
def test_every_loss_and_every_gradient_is_the_release_s(exact, stream):
    check(exact, stream, 1e-10)


@pytest.mark.parametrize("stream", LOSSES)
def test_and_in_float32_within_its_rounding(stream):
    check(Pair(torch.float32), stream, 1e-5)


def test_every_tensor_of_the_release_moves_but_its_dead_ones(exact):
    """Which also says that no name was left out of the comparison above."""
    moved = set()
    for stream, losses in LOSSES.items():
        ours, _, theirs = exact.losses(stream)
        moved |= exact.gradients(sum(ours.values()), sum(theirs.values()))[1].keys()
    fusion = "fusion_encoder.roberta.embeddings."
    still = {n for n in exact.tensors if n not in moved and n not in TIED}
    assert still == {n for n in exact.tensors if ".lm_cap_head." in n or n.startswith(fusion) and "word_embeddings" not in n}


def test_what_a_loss_does_not_move_in_the_release_it_does_not_move_here(exact):
    for stream, stops in (("pairs", ("itm", "imlm", "mim")), ("region", ("itm", "imlm", "bbp"))):
        ours, _, theirs = exact.losses(stream)
        for loss in stops:
            got, _ = exact.gradients(ours[loss], sum(theirs[p] for p in LOSSES[stream][loss]))
            assert got and not [n for n in got if n.startswith("text_encoder.")], loss


def test_duplicates_are_negatives_in_the_release_and_with_ignore_same_off():
    same = [(0, 3)]
    pair = Pair(overrides=["losses.itc.ignore_same=false", "losses.itm.ignore_same=false"])
    ours, _, theirs = pair.losses("pairs", same)
    assert ours["itc"].item() == pytest.approx(theirs["itc"].item(), rel=1e-10)
    assert ours["itm"].item() == pytest.approx(theirs["itm"].item(), rel=1e-10)
    ours, _, theirs = Pair().losses("pairs", same)
    assert ours["itc"].item() < theirs["itc"].item() - 1e-4


@pytest.mark.parametrize("temp, used", [(0.9, 0.5), (1e-5, 1e-3)])
def test_a_temperature_out_of_bounds_is_clamped_as_in_the_release(temp, used):
    pair = Pair(temp=temp)
    ours, log, theirs = pair.losses("pairs")
    assert log["itc.temperature"].item() == pair.tensors["temp"].item() == pytest.approx(used)
    assert ours["itc"].item() == pytest.approx(theirs["itc"].item(), rel=1e-10)


def test_the_guard_of_giou_is_all_that_differs_there(exact):
    _, given = make_batch("region")
    text, whole = (t.detach() for t in (exact.release.encode_text(given["ids"]), exact.release.encode_image(given["image"])))
    guarded, plain = (Release(exact.tensors, SIZES["heads"], eps).boxes(given, text, whole[given["image_index"]])[1].item()
                      for eps in (1e-7, 0.0))
    assert 0 < abs(guarded - plain) < 1e-5


def test_the_stored_index_of_the_position_bias_is_the_one_described():
    stored = release_state(**SIZES)["vision_encoder.blocks.0.attn.relative_position_index"]
    assert torch.equal(stored, offsets(SIZES["grid"]))
