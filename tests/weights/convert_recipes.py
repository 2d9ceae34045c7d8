"""A recipe of X-FM at the tiny sizes of ``release_names``, on synthetic data; the tests of conversions build its model."""

from xtoolkit import recipe as recipes
from xtoolkit.recipe import Recipe

TINY = """
tokenizer: roberta-base
encoders:
  vision: {type: BEiTv2, inputs: {image: $image}, width: 16, layers: 2, heads: 2, patch_size: 8, image_size: 32, drop_path: 0}
  text: {type: RoBERTa, inputs: {text: $text}, width: 16, layers: 2, heads: 2, vocab_size: 60, max_positions: 24, dropout: 0}
  fusion: {type: CrossAttention, inputs: {text: text, image: vision}, layers: 2, heads: 2, dropout: 0}
  vision_proj: {type: Projection, inputs: {x: vision}, dim: 8}
  text_proj: {type: Projection, inputs: {x: text}, dim: 8}
  sim: {type: Similarity, inputs: {image: vision_proj, text: text_proj}}
losses:
  mlm: {type: MLM, feature: text@mask_text}
  mim: {type: MIM, feature: vision@mask_image, target: vision}
  itc: {type: ITC, sim: sim}
  itm: {type: ITM, fusion: fusion, negatives: sim}
  imlm: {type: IMLM, feature: fusion@mask_text}
  bbp: {type: BBP, feature: fusion@whole}
stop_gradient: {text -> fusion: [itm, imlm, bbp]}
streams:
  text: {batch_size: 3, losses: {mlm: 1}, data: {type: SyntheticText, size: 20, tokens: 8, mask: {prob: 0.3, max: 4}}}
  pairs: {batch_size: 4, losses: {itc: 1, itm: 1, imlm: 1, mim: 1}, data: {type: SyntheticPairs, size: 20, tokens: 6,
          mask: {prob: 0.5, max: 4}, image_mask: {patches: 3, min_block: 1}}}
  region: {batch_size: 4, losses: {itc: 1, itm: 1, imlm: 1, bbp: 1}, data: {type: SyntheticRegions, size: 20, tokens: 6,
           max_per_image: 2, mask: {prob: 0.5, max: 4}}}
optim: {lr: 1e-2}
train: {steps: 2, output: outputs/none, workers: 0, device: cpu, precision: fp32}
"""


def write(folder, *overrides: str) -> str:
    """The tiny recipe as a file, with ``overrides`` applied (``losses.bbp=null``); returns its path."""
    from xtoolkit.recipe import config

    path = folder / "recipe.yaml"
    path.write_text(TINY)
    if overrides:
        path.write_text(config.load(str(path), overrides).dump())
    return str(path)


def tiny(folder, *overrides: str) -> Recipe:
    """The tiny recipe, checked; weights and tokenizers are not asked for."""
    return recipes.load(write(folder, *overrides), missing_files=False)
