"""FLAVA's training step on pairs, here and in transformers, in turns: seconds, their ratio, and how far the losses agree.

    python tests/compare_flava.py [--batch 16] [--rounds 9] [--threads 2] [--small]

One process holds transformers' ``FlavaForPreTraining`` at FLAVA's base size, as drawn, and this toolkit's model of
``projects/xfm/baselines/flava.yaml`` with the same weights. Both get the same made-up batch: captions of 8 to 16 tokens, 75
masked patches, 15 % masked words, one pair in eight that does not match; four losses (global contrast, matching, masked patches
and words of the masked pair). The codes of pictures are given to both: neither runs the dVAE. A step is forward, backward and
AdamW, in bf16 autocast over float32 weights. The rate is 0: AdamW does its whole work, and the weights stay as they are, so that
losses can be compared in every round.

Three ways take turns, each round in another order, the first round is thrown away: texts trimmed to the longest of the batch,
here; the same in transformers; and in transformers padded to FLAVA's 77 tokens, as its processor gives them. Each round's ratio
is transformers' seconds over this toolkit's.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.cli.releases import releases
from xtoolkit.encoders.base import Encoder
from xtoolkit.model import Model
from xtoolkit.recipe.plugins import import_components
from xtoolkit.registry import ENCODER_REGISTRY

FLAVA = Path(__file__).resolve().parents[1] / "projects/xfm/baselines/flava.yaml"
PADDED, SHORTEST, LONGEST = 77, 8, 16
MASK, FIRST = 103, 1000  # of bert-base-uncased: the mask's id, the first id that is a word's
HERE, TRIMMED, FULL = "xtoolkit, trimmed", "transformers, trimmed", f"transformers, {PADDED} tokens"
LOSSES = {"contrast": "global_contrastive", "itm": "itm", "mmm_image": "mmm_image", "mmm_text": "mmm_text"}
BASE = {"width": 768, "layers": 12, "fused": 6, "heads": 12, "image": 224, "patch": 16, "words": 30522, "codes": 8192,
        "masked": 75}
SMALL = {"width": 48, "layers": 2, "fused": 1, "heads": 3, "image": 64, "patch": 16, "words": 1100, "codes": 32, "masked": 6}


@ENCODER_REGISTRY.register
class GivenCodes(Encoder):
    """An image tokenizer that is told what to say, in ``now``. YAML: {type: GivenCodes, inputs: {image: $image}, codes: 8192}"""

    TRAINABLE = False

    def __init__(self, codes: int):
        super().__init__()
        self.width, self.codes, self.now = 1, codes, None

    def forward(self, *, view, image) -> Tensor:
        """(B, N) int64."""
        return self.now


def drawn(size: dict):
    """transformers' model, its weights as drawn; without the dVAE."""
    from transformers import FlavaConfig, FlavaForPreTraining

    sizes = {"hidden_size": size["width"], "num_attention_heads": size["heads"], "intermediate_size": 4 * size["width"]}
    deep = sizes | {"num_hidden_layers": size["layers"]}
    torch.manual_seed(0)
    return FlavaForPreTraining(FlavaConfig(
        image_config=deep | {"image_size": size["image"], "patch_size": size["patch"], "vocab_size": size["codes"]},
        text_config=deep | {"vocab_size": size["words"]}, multimodal_config=sizes | {"num_hidden_layers": size["fused"]},
        hidden_size=size["width"], projection_dim=size["width"], init_codebook=False)).train()


def same(theirs, size: dict) -> Model:
    """This toolkit's model with those weights."""
    deep = {key: size[key] for key in ("width", "layers", "heads")}
    keys = {"image_layers": deep | {"image_size": size["image"], "patch_size": size["patch"]},
            "text_layers": deep | {"vocab_size": size["words"]},
            "fusion": {"layers": size["fused"], "heads": size["heads"]},
            "vision_proj": {"dim": size["width"]}, "text_proj": {"dim": size["width"]}}
    recipe = recipes.load(str(FLAVA), [
        *(f"encoders.{name}.{key}={value}" for name, block in keys.items() for key, value in block.items()),
        f"encoders.tokens={{type: GivenCodes, codes: {size['codes']}}}",
        "streams.text=null", "streams.image=null", "losses.mlm=null", "losses.mim=null", "evaluate=null",
        "schedule.sample={image: null, text: null}"], missing_files=False)
    model = Model(recipe).train()
    model.load_state_dict(releases()["flava"].from_release(theirs.state_dict(), recipe)[0])
    return model


def made_up(rows: int, size: dict):
    """The batch for this toolkit, trimmed; ``given(length)``, what transformers takes of it at so many tokens; the codes."""
    from xtoolkit.plugins.flava.data import MatchField

    torch.manual_seed(1)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (rows,))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(FIRST, size["words"], mask.shape).masked_fill(~mask, 0)
    hidden = (torch.rand(mask.shape) < 0.15) & mask
    hidden[:, 1] = True  # at least one a text
    match = (torch.arange(rows) % 8 != 5).long()
    patches = (size["image"] // size["patch"]) ** 2
    chosen = torch.rand(rows, patches).argsort(1) < size["masked"]
    pixels, codes = torch.randn(rows, 3, size["image"], size["image"]), torch.randint(size["codes"], (rows, patches))

    asked, told = (hidden & match.bool()[:, None]).flatten().nonzero()[:, 0], chosen & match.bool()[:, None]
    text = TextField(ids, mask, torch.arange(rows), ids.masked_fill(hidden, MASK), asked, ids.flatten()[asked])
    image = ImageField(pixels, torch.arange(rows), chosen, list(range(rows)), int(told.sum()), told)

    def given(length: int | None) -> dict:
        pad = lambda t, value: t if length is None else torch.nn.functional.pad(t, (0, length - t.shape[1]), value=value)
        return {"input_ids": pad(ids, 0), "input_ids_masked": pad(text.masked_ids, 0), "attention_mask": pad(mask.long(), 0),
                "pixel_values": pixels, "bool_masked_pos": chosen.long(), "mlm_labels": pad(ids.masked_fill(~hidden, -100), -100),
                "itm_labels": match}

    return Batch(image=image, text=text, match=MatchField(match)), given, codes


class Way:
    """One way to take a step.

    Attributes:
        losses: the four of the last step, by this toolkit's names.
        norm: of the last step's gradient.
        seconds: of each step that counts.
    """

    def __init__(self, model, forward):
        self._model, self._forward, self.seconds, self.losses, self.norm = model, forward, [], {}, 0.0
        if not hasattr(model, "optimizer"):  # two ways share transformers' model
            trained = [p for p in model.parameters() if p.requires_grad]
            model.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.1, fused=True)

    def step(self, counts: bool) -> None:
        optimizer, began = self._model.optimizer, time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            losses = self._forward()
        sum(losses.values()).backward()
        optimizer.step()
        if counts:
            self.seconds.append(time.perf_counter() - began)
        self.losses = {name: value.item() for name, value in losses.items()}
        self.norm = torch.nn.utils.get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None]).item()
        optimizer.zero_grad(set_to_none=True)


def ways(rows: int, size: dict) -> dict[str, Way]:
    theirs = drawn(size)
    ours = same(theirs, size)
    batch, given, codes = made_up(rows, size)
    ours.encoders["tokens"].now = codes

    def transformers(length):
        arguments = given(length) | {"return_loss": True, "skip_unmasked_multimodal_encoder": True}

        def forward():
            told = theirs(**arguments, mim_labels=codes.clone()).loss_info  # it writes into them
            return {name: told[of] for name, of in LOSSES.items()}

        return forward

    return {HERE: Way(ours, lambda: ours("pairs", batch)), TRIMMED: Way(theirs, transformers(None)),
            FULL: Way(theirs, transformers(PADDED))}


def apart(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other))


def exactly(found: dict[str, Way]) -> str:
    """How far the losses agree in float32, without autocast."""
    with torch.no_grad():
        losses = {name: {loss: value.item() for loss, value in way._forward().items()} for name, way in found.items()}
    worst = max(apart(losses[HERE][loss], losses[name][loss]) for name in (TRIMMED, FULL) for loss in LOSSES)
    shown = ", ".join(f"{loss} {losses[HERE][loss]:.6f}" for loss in LOSSES)
    return f"losses in float32: {shown}; relative difference at most {worst:.1e}"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a toy size: is everything in place?")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    import_components()
    found = ways(args.batch, SMALL if args.small else BASE)
    size = "toy size, which says nothing of speed" if args.small else "base size"
    print(f"{size}, {args.batch} pairs, bf16, {args.threads} threads, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{args.rounds} rounds after one that is thrown away")
    print(exactly(found), flush=True)
    names, differences = list(found), {"losses": 0.0, "gradient norm": 0.0}
    for turn in range(args.rounds + 1):
        for name in names[turn % 3:] + names[:turn % 3]:
            found[name].step(counts=turn > 0)
        for way in (found[TRIMMED], found[FULL]):
            here = found[HERE]
            found_apart = [apart(here.losses[loss], way.losses[loss]) for loss in LOSSES]
            differences["losses"] = max(differences["losses"], *found_apart)
            differences["gradient norm"] = max(differences["gradient norm"], apart(here.norm, way.norm))
    print("in bf16, relative difference at most: " + ", ".join(f"{what} {most:.1e}" for what, most in differences.items()))
    for name, way in found.items():
        middle, low, high = statistics.median(way.seconds), min(way.seconds), max(way.seconds)
        print(f"{name:24} {middle:8.3f} s a step, {low:.3f} to {high:.3f}; {middle / args.batch:.3f} s a pair")
    for name in (TRIMMED, FULL):
        ratios = [there / here for here, there in zip(found[HERE].seconds, found[name].seconds, strict=True)]
        print(f"{name} / {HERE}: {statistics.median(ratios):.2f} by the median of the rounds, {min(ratios):.2f} to "
              f"{max(ratios):.2f}")


if __name__ == "__main__":
    main()
