"""X-FM itself, small, all losses over all streams, with workers: stopped by a signal and resumed, bit for bit."""

import json
import os
import signal

import pytest
import tokenizers
import torch

from xtoolkit import recipe as recipes
from xtoolkit.engine.hooks import Checkpoint, JsonLines, Log, Signals
from xtoolkit.engine.run import Run
from xtoolkit.engine.trainer import Stopped, Trainer
from xtoolkit.hooks import Hook

CONFIG = """
tokenizer: {folder}
encoders:
  vision: {{type: BEiTv2, inputs: {{image: $image}}, width: 16, layers: 2, heads: 2, patch_size: 16, image_size: 48}}
  text: {{type: RoBERTa, inputs: {{text: $text}}, width: 16, layers: 2, heads: 2, vocab_size: 300, dropout: 0.1}}
  fusion: {{type: CrossAttention, inputs: {{text: text, image: vision}}, layers: 2, heads: 2, dropout: 0.1}}
  vision_proj: {{type: Projection, inputs: {{x: vision}}, dim: 8}}
  text_proj: {{type: Projection, inputs: {{x: text}}, dim: 8}}
  sim: {{type: Similarity, inputs: {{image: vision_proj, text: text_proj}}}}
losses:
  mlm: {{type: MLM, feature: text@mask_text}}
  mim: {{type: MIM, feature: vision@mask_image, target: vision}}
  itc: {{type: ITC, sim: sim}}
  itm: {{type: ITM, fusion: fusion, negatives: sim}}
  imlm: {{type: IMLM, feature: fusion@mask_text}}
  bbp: {{type: BBP, feature: fusion@whole}}
stop_gradient: {{text -> fusion: [itm, imlm, bbp]}}
streams:
  text: {{batch_size: 3, losses: {{mlm: 1}},
         data: {{type: SyntheticText, size: 20, tokens: 8, mask: {{prob: 0.3, max: 4}}}}}}
  image: {{batch_size: 3, losses: {{mim: 1}},
          data: {{type: SyntheticImages, size: 20, image_mask: {{patches: 3, min_block: 1}}}}}}
  pairs: {{batch_size: 4, losses: {{itc: 1, itm: 1, imlm: 1, mim: 1}},
          data: {{type: SyntheticPairs, size: 20, tokens: 6, mask: {{prob: 0.5, max: 4}},
                 image_mask: {{patches: 3, min_block: 1}}}}}}
  region: {{batch_size: 4, losses: {{itc: 1, itm: 1, imlm: 1, bbp: 1}},
           data: {{type: SyntheticRegions, size: 20, tokens: 6, max_per_image: 2, mask: {{prob: 0.5, max: 4}}}}}}
schedule: {{every_step: [[text, image, pairs], [region]], every: {{text: 2}}}}
optim: {{lr: 1e-2, warmup: 3, lr_mult: {{sim: 2, itm: 2}}}}
train: {{steps: 10, output: {output}, log_every: 1, checkpoint_every: 100, workers: 1, device: cpu, precision: bf16}}
"""


class Terminate(Hook):
    def before_step(self, trainer):
        if trainer.done == 4:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a red cat under the tree"] * 9, vocab_size=280,
                            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save(str(folder / "tokenizer.json"))
    return folder


def train(tmp_path, folder, name, *more, resume=False):
    """Runs the recipe in ``name`` as a new process would; returns weights and optimizer state by name."""
    file = tmp_path / f"{name}.yaml"
    file.write_text(CONFIG.format(folder=folder, output=tmp_path / name))
    recipe = recipes.load(str(file))
    run = Run(recipe)
    trainer = Trainer(run.model, recipe, run.loaders, hooks=[*more, JsonLines(), Log(), Checkpoint(), Signals()],
                      resume=resume)
    try:
        trainer.fit()
    finally:
        run.close()
    state = {n: trainer.optimizer.state[p] for group in trainer.optimizer.param_groups
             for n, p in zip(group["names"], group["params"])}
    return trainer.model.state_dict() | {f"{n}/{key}": v for n, entry in state.items() for key, v in entry.items()}


def logged(path):
    times = {"seconds", "samples_per_s", "eta_s", "memory_gb", "memory_now_gb", "data_share", "cpu_share"}
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in open(path / "metrics.jsonl")]


def test_ten_steps_equal_five_a_resume_and_five_more(tmp_path, folder):
    torch.manual_seed(1)
    whole = train(tmp_path, folder, "whole")
    torch.manual_seed(2)
    with pytest.raises(Stopped, match="step 5"):
        train(tmp_path, folder, "parts", Terminate())
    torch.manual_seed(3)
    parts = train(tmp_path, folder, "parts", resume=True)
    assert whole.keys() == parts.keys() and "losses.bbp.head.0.weight/exp_avg" in whole
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")
    first, last = logged(tmp_path / "whole")[0], logged(tmp_path / "whole")[-1]
    assert {"mlm", "mim", "itc", "itm", "imlm", "bbp", "region.bbp.giou"} <= first.keys()
    assert first["samples.text"] == 3 and last["samples.text"] == 15 and last["samples.region"] == 40


def test_parts_start_alike_in_recipes_that_differ_elsewhere(tmp_path, folder):
    def weights(*overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(CONFIG.format(folder=folder, output=tmp_path / "run"))
        return Run(recipes.load(str(path), list(overrides))).model.state_dict()

    whole, without, other = weights(), weights("losses.mim=null", "losses.bbp=null"), weights("train.seed=7")
    assert set(without) < set(whole) and all(torch.equal(value, whole[name]) for name, value in without.items())
    assert not torch.equal(other["encoders.fusion.layer.0.output.dense.weight"], whole["encoders.fusion.layer.0.output.dense.weight"])
