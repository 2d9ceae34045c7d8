"""A recipe of one step on four texts, and a task that counts their tokens: what tables of runs are tested with."""

import json

from xtoolkit.ablation.jobs import write_done
from xtoolkit.recipe.folder import RECORD

PLUGIN = '''
from xtoolkit.graph import Need
from xtoolkit.registry import TASK_REGISTRY
from xtoolkit.tasks.base import Task


@TASK_REGISTRY.register
class Long(Task):
    """Whether a text has at least as many tokens as it is asked for.

    YAML: {type: Long, tokens: 5}
    """

    def __init__(self, tokens: int):
        self.tokens = tokens

    @classmethod
    def needs(cls, block):
        return [Need("text", grad=False)]

    def predict(self, f, batch):
        return {"length": batch.text.mask.sum(1).cpu()}

    def score(self, outputs):
        return {"accuracy": 100 * (outputs["length"] >= self.tokens).double().mean().item()}

    def floor(self, outputs):
        return {"accuracy": 50.0}

    def samples(self, outputs):
        return [{"id": n, "image_id": None, "score": int(length >= self.tokens)} for n, length in enumerate(outputs["length"].tolist())]
'''
RECIPE = '''
plugins: [long.py]
tokenizer: sample://picturebook/tokenizer
encoders: {text: {type: RoBERTa, inputs: {text: $text}, width: 16, layers: 1, heads: 1, vocab_size: 4000}}
losses: {mlm: {type: MLM, feature: text@mask_text}}
streams: {train: {batch_size: 4, losses: {mlm: 1}, data: {type: Text, path: FOLDER/text.jsonl, max_tokens: 16, mask: {prob: 0.5, max: 4}}}}
evaluate: {test: {type: Long, tokens: 5, data: {type: Text, path: FOLDER/text.jsonl, max_tokens: 16}}}
optim: {lr: 1e-3}
train: {steps: 1, output: outputs/x, workers: 0, precision: fp32}
'''


def write(folder):
    """Writes the task, the recipe and its data into a folder."""
    for name, text in (("long.py", PLUGIN), ("long.yaml", RECIPE)):
        (folder / name).write_text(text.replace("FOLDER", str(folder)))
    texts = ["a dog", "a dog and a cat on a table", "one two three four five six", "the red house stands near the sea and the boats at night"]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def saved(job):
    """Leaves what is taken for a checkpoint of a job."""
    folder = job.folder / "checkpoints/step_00000001"
    folder.mkdir(parents=True)
    for name in (".metadata", RECORD):
        (folder / name).write_text("{}")


def start_weights(folder):
    """Weights of the recipe's model, as a pretrained run would leave them."""
    from safetensors.torch import save_file

    import xtoolkit

    run = xtoolkit.build(str(folder / "long.yaml"))
    save_file({name: value.clone() for name, value in run.model.state_dict().items()}, str(folder / "start.safetensors"))


def fill(job, accuracy, scores=()):
    """Leaves what a job would."""
    (job.folder / "evaluations/test").mkdir(parents=True)
    (job.folder / "evaluations/test.json").write_text(json.dumps({
        "step": 1, "time": "2026-11-22T01:08:00+00:00", "metrics": {"accuracy": accuracy, "other": accuracy and accuracy / 2}, "floor": {"accuracy": 50.0},
        "table": [["", "accuracy"], [["all", "1"]]], "headlines": {"accuracy": "Right, %"}, "figures": []}))
    (job.folder / "evaluations/test/samples.jsonl").write_text("".join(
        json.dumps({"id": f"s{n}", "image_id": None, "told": f"word {n}", "score": score}) + "\n" for n, score in enumerate(scores)))
    write_done(job, 1.0)
