"""Gradients loss by loss: against losses differentiated alone by hand, against the trainer's own, and without a trace."""

import dataclasses
import itertools
import json

import pytest
import torch

from commands import SMALL, TINY, tool
from engine_toy import ToyModel, loaders, recipe
from xtoolkit import recipe as recipes
from xtoolkit.engine.hooks import default_hooks
from xtoolkit.engine.run import Run
from xtoolkit.engine.trainer import Trainer
from xtoolkit.hooks import Hook, LossGradients
from xtoolkit.hooks.by_loss import cosines, gradients_by_loss, norms
from xtoolkit.recipe.settings import ScheduleBlock
from xtoolkit.report import write_report
from xtoolkit.report.gradients import heat_maps
from xtoolkit.report.record import Run as Record

WEIGHTS = {"itc": 1.0, "itm": 2.0, "imlm": 0.5, "mim": 1.0}
STREAM = "streams.match.losses="


def small(*overrides):
    """tiny.yaml, shrunk; with the seed, what two recipes share begins alike."""
    return Run(recipes.load(TINY, [*SMALL, "train.precision=fp32", "train.device=cpu", "evaluate=null", "optim.lr_mult={}",
                                   "encoders.vision.stem=[8, 8, 8]", *overrides]))


def audited(run):
    """(rows, encoders) of a batch of each stream."""
    rows = {}
    torch.manual_seed(1)
    for parameter in run.model.losses["bbp"].parameters():  # drawn anew: it begins with a last layer of zeros, which stops all
        torch.nn.init.normal_(parameter, std=0.1)
    for stream, spec in run.recipe.streams.items():
        torch.manual_seed(0)
        gradients_by_loss(run.model, stream, run.batch(stream), spec.losses, rows=rows)
    return rows, list(run.model.encoders)


def exact(batch):
    """The batch in float64."""
    return batch.with_fields(image=dataclasses.replace(batch.image, pixels=batch.image.pixels.double()))


def test_norms_and_cosines_are_those_of_each_loss_trained_alone_in_float64():
    """All other weights 0 in a recipe of its own, one ``backward``, and ``.grad`` of the parameters."""
    given = lambda weights: STREAM + json.dumps(weights)
    run = small(given(WEIGHTS))
    model, batch = run.model.double().train(), exact(run.batch("match"))
    torch.manual_seed(3)
    rows = gradients_by_loss(model, "match", batch, WEIGHTS)
    encoders, alone = list(model.encoders), {}
    for loss, weight in WEIGHTS.items():
        one = small(given({name: weight * (name == loss) for name in WEIGHTS})).model.double().train()
        torch.manual_seed(3)
        (found,) = one("match", batch).values()
        (weight * found).backward()
        alone[loss] = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
        assert rows[f"match.{loss}"].keys() == alone[loss].keys()
        assert not any(p.grad is not None for p in model.parameters())
    flat = lambda loss, names: torch.cat([alone[loss][name].flatten() for name in names])
    of = lambda loss, encoder: [name for name in alone[loss] if name.startswith(f"encoders.{encoder}.")]
    for loss, encoder in itertools.product(WEIGHTS, encoders):
        mine, names = norms(rows, encoders)[f"match.{loss}"][encoder], of(loss, encoder)
        assert mine == pytest.approx(float(flat(loss, names).norm()), rel=1e-9) if names else mine == 0
    pairs = {(encoder, a, b): value for encoder, found in cosines(rows, encoders).items() for a, b, value in found}
    assert ("vision", "match.itc", "match.mim") in pairs and ("fusion", "match.itm", "match.imlm") in pairs
    for (encoder, a, b), value in pairs.items():
        one, other = a.partition(".")[2], b.partition(".")[2]
        both = [name for name in of(one, encoder) if name in of(other, encoder)]
        assert value == pytest.approx(float(torch.cosine_similarity(flat(one, both), flat(other, both), 0)), abs=1e-9)


def test_the_language_encoder_gets_exactly_nothing_from_the_losses_that_are_cut():
    cut = ["region.bbp", "match.itm", "match.imlm"]
    sizes, open_ = norms(*audited(small())), norms(*audited(small("stop_gradient=null")))
    assert [sizes[row]["text"] for row in cut] == [0, 0, 0] and all(open_[row]["text"] > 1e-2 for row in cut)
    for row, of in sizes.items():
        assert row in cut or of == open_[row]
    assert sizes["text.mlm"]["text"] > 0 and [sizes["text.mlm"][e] for e in ("vision", "fusion", "sim")] == [0, 0, 0]
    assert all(sizes[row]["fusion"] > 0 and sizes[row]["vision"] > 0 for row in cut)


class Keep(Hook):
    """Keeps the gradient of the first step before clipping."""

    def after_backward(self, trainer):
        if trainer.done == 0:
            self.found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


class Rows(LossGradients):
    """Keeps the rows too."""

    def after_step(self, trainer):
        self.kept = self._rows or self.kept
        super().after_step(trainer)


def hooked(cls, every=2):
    made = cls(every=every)
    made.name = "audit"
    return made


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_losses_gradients_add_up_to_the_trainers(tmp_path, accumulate):
    keep, audit = Keep(), hooked(Rows)  # the toy has dropout: the masks are the training's own
    Trainer(ToyModel(), recipe(tmp_path, steps=1, accumulate=accumulate), loaders(parts=accumulate),
            hooks=default_hooks(own=[keep, audit])).fit()
    assert audit.kept.keys() == {"a.one", "a.two", "b.one"}
    for name, gradient in keep.found.items():
        torch.testing.assert_close(sum(row[name] for row in audit.kept.values() if name in row), gradient)


def trained(output, *own):
    torch.manual_seed(5)
    trainer = Trainer(ToyModel(), recipe(output, steps=7, schedule=ScheduleBlock(every_step=[["a", "b"]], every={"b": 3})),
                      loaders(), hooks=default_hooks(own=own))
    trainer.fit()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return trainer, lines, torch.get_rng_state()


def test_a_run_with_the_hook_is_equal_to_the_bit_to_one_without(tmp_path):
    measured = {"samples_per_s", "data_share", "seconds", "eta_s", "memory_gb", "memory_now_gb", "cpu_share"}
    plain = lambda lines: [{k: v for k, v in line.items() if k not in measured and not k.startswith("audit.")} for line in lines]
    (one, lines, state), (other, without, same) = trained(tmp_path / "a", hooked(LossGradients)), trained(tmp_path / "b")
    assert torch.equal(state, same) and plain(lines) == plain(without)
    assert all(torch.equal(p, q) for p, q in zip(one.model.state_dict().values(), other.model.state_dict().values()))
    assert [one.loaders[s].visits for s in "ab"] == [other.loaders[s].visits for s in "ab"]
    # Due at steps 0, 2, 4 and 6; stream b takes part in steps 0, 3 and 6, so the audit of step 2 is whole after step 3's.
    assert [line["step"] for line in lines if any(k.startswith("audit.") for k in line)] == [1, 4, 6, 7]
    assert lines[0]["audit.norm.b.one.side"] == 0 and lines[0]["audit.norm.a.two.side"] > 0
    assert -1 <= lines[3]["audit.cosine.body.a.one.b.one"] <= 1 and "audit.norm.b.one.body" not in lines[5]


def test_what_parts_of_a_model_remember_is_put_back():
    class Remembers(ToyModel):
        """Counts in a buffer, a list and an attribute that the first pass makes."""

        def __init__(self):
            super().__init__()
            self.register_buffer("passes", torch.zeros(1))
            self.seen, self.sums = [], None

        def forward(self, stream, batch, share=None, known=None):
            self.passes += 1
            self.seen.append(stream)
            self.sums = batch["x"].sum() if self.sums is None else self.sums + batch["x"].sum()
            self.made = True
            return super().forward(stream, batch, share, known)

    model, state = Remembers(), torch.get_rng_state()
    rows = gradients_by_loss(model, "a", loaders()["a"].at(0), {"one": 1.0, "two": 0.5})
    assert set(rows) == {"a.one", "a.two"} and torch.equal(torch.get_rng_state(), state)
    assert float(model.passes) == 0 and model.seen == [] and model.sums is None and not hasattr(model, "made")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two steps with the hook."""
    output = tmp_path_factory.mktemp("run") / "xfm"
    small(f"train.output={output}", "train.steps=2", "hooks.audit={type: LossGradients, every: 1}").train(say=lambda line: None)
    return output


def test_the_report_draws_cosines_over_training():
    """Of 40 audits twelve columns, the first and the last among them; a pair that was not met at one has no cell there."""
    lines = [{"step": step, "audit.norm.a.one.body": 1.0, "audit.cosine.body.a.two.a.one": step / 40 - 0.5} for step in range(1, 41)]
    lines[-1] |= {"audit.cosine.body.b.one.a.one": -0.25}
    run = read_back(lines)
    newest, over = [one for one in heat_maps(run) if "cosine" in one["title"]]
    assert newest["rows"][0][1] == ("+0.500", 35.0, False) and over["title"] == "audit: cosine in body over training, step by step"
    assert over["heading"][:3] == ["losses", "1", "5"] and over["heading"][-1] == "40" and len(over["heading"]) == 13
    first, second = over["rows"]
    assert [cell[0] for cell in first[:2]] == ["a.one, a.two", "-0.475"] and first[1][2] and first[-1] == ("+0.500", 35.0, False)
    assert second[1] == ("", 0, False) and second[-1] == ("-0.250", 17.5, True)
    assert all(len(map_["heading"]) == len(row) for map_ in (newest, over) for row in map_["rows"])
    assert [one["title"] for one in heat_maps(read_back(lines[:1]))] == ["audit: gradient norm, coloured within each encoder", "audit: cosine in body"]


def read_back(lines):
    config = {"streams": {"a": {"losses": {"one": 1, "two": 1}}, "b": {"losses": {"one": 1}}}, "encoders": {"body": {}}, "hooks": {"audit": {}}}
    return Record(config, "", lines, {}, {}, {}, {})


def test_the_report_draws_the_newest_audit_and_the_command_the_newest_checkpoint(folder, tmp_path, capsys):
    page = write_report(folder).read_text()
    assert "audit: gradient norm" in page and "audit: cosine in text" in page and "audit: gradient norm of fusion" in page
    assert page.count("color-mix") > 20 and list((folder / "tensorboard").glob("events*"))
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert tool("audit_gradients").main([str(folder), "--batches", "2", "--json", str(tmp_path / "out.json")]) == 0
    out, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert f"{folder}, step 2, 2 batches of each stream" in out and "cosine in vision" in out
    assert found["norms"]["match.itm"]["text"] == 0 < found["norms"]["match.itm"]["vision"]
    assert tool("audit_gradients").main([str(folder), "stop_gradient=null", "--first", "1", "--json", str(tmp_path / "two.json")]) == 0
    second = json.loads((tmp_path / "two.json").read_text())["norms"]
    assert second["match.itm"]["text"] > 0 and second["match.itc"]["text"] != found["norms"]["match.itc"]["text"]
    assert before == sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("arguments, said", [
    (["nowhere"], "nowhere: holds no run: it has no config.yaml"),
    ([], "name one RUN or one --config, not none"),
    (["a", "--config", TINY], f"name one RUN or one --config, not a, {TINY}"),
    (["--config", TINY, "--batches", "0"], "'0' is not a number above 0"),
    (["--config", TINY, "--first", "-1"], "--first"), (["--config", TINY, "--json", "no/where.json"], "--json: no: no such folder"),
    (["--config", TINY, "strems.text=null"], "`strems`")])
def test_wrong_inputs_are_one_answer(arguments, said, capsys):
    try:
        code = tool("audit_gradients").main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2 and said in capsys.readouterr().err
