"""Masked words: one text with one picture at a time, the standard error by hand, and what a figure does not depend on."""

from types import SimpleNamespace

import pytest
import torch

from batches import Batches
from pairs import RECIPE, Rank, batches, model
from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch
from xtoolkit.registry import ConfigError
from xtoolkit.tasks import MaskedWords
from xtoolkit.tasks.masked_words import another, paired


@pytest.fixture(scope="module")
def made():
    """A model whose pictures and words are seen in what it predicts: the output matrix is drawn larger."""
    found = model()
    with torch.no_grad():
        found.losses["imlm"].decoder.weight.mul_(5)
    return found


@torch.no_grad()
def by_hand(model):
    """[(picture, label, loss and rank of the label with its own picture, the same with the other one)] of all masked tokens."""
    loss, found = model.losses["imlm"], []
    for batch in batches():
        names, length = batch.image.image_id, batch.text.ids.shape[1]
        others = another(names)
        for place, label in zip(batch.text.masked_pos.tolist(), batch.text.labels.tolist()):
            row = place // length
            own, line = batch["image_index"][row].item(), [names[batch["image_index"][row]], label]
            for picture in (own, others[own].item()):
                ids = batch.text.masked_ids[row:row + 1][:, batch.text.mask[row]]
                one = Batch(text=batch.text.select(torch.tensor([row])).trim(ids.shape[1]),
                            image=batch.image.select(torch.tensor([picture])))
                one = one.with_fields(text=type(one.text)(ids, torch.ones_like(ids, dtype=torch.bool)))
                hidden = model.features(one)["fusion"].tokens[0, place % length]
                scores = loss.decoder(loss.layer_norm(torch.nn.functional.gelu(loss.dense(hidden))))
                line += [-scores.log_softmax(0)[label].item(), int((scores > scores[label]).sum())]
            found.append(line)
    return found


def test_losses_and_accuracies_equal_one_text_with_one_picture_at_a_time(made):
    task, kept = MaskedWords(), {}
    score, task.score = task.score, lambda outputs: kept.update(outputs) or score(outputs)
    found, expected = task.evaluate(made, Batches(batches())), by_hand(made)
    assert kept["word"].tolist() == [line[1] for line in expected]
    for column, which in ((2, "own"), (4, "other")):
        assert kept[which].tolist() == pytest.approx([line[column] for line in expected], abs=2e-4)
        assert kept[f"{which}.told"].tolist() == [line[column + 1] == 0 for line in expected]
    metrics, count = found["metrics"], len(expected)
    gain = sum(line[4] - line[2] for line in expected) / count
    pictures = {line[0] for line in expected}
    by_picture = [sum(line[4] - line[2] - gain for line in expected if line[0] == one) for one in pictures]
    error = (sum(x**2 for x in by_picture) * len(pictures) / (len(pictures) - 1)) ** 0.5 / count
    assert metrics["gain"] == pytest.approx(gain, abs=1e-4) and metrics["gain_error"] == pytest.approx(error, rel=1e-2)
    assert abs(gain) > 1e-3 and metrics["gain_in_errors"] == pytest.approx(metrics["gain"] / metrics["gain_error"])
    assert metrics["other.loss"] - metrics["loss"] == pytest.approx(metrics["gain"])
    shares = [[line[1] for line in expected].count(line[1]) / count for line in expected]
    entropy = -torch.tensor(shares, dtype=torch.float64).log().mean().item()
    assert found["floor"] == pytest.approx({"loss": entropy, "other.loss": entropy, "gain": 0, "accuracy": 100 * max(shares),
                                            "other.accuracy": 100 * max(shares)})


def test_a_figure_repeats_on_any_number_of_processes_and_leaves_the_generator_alone(made):
    state = torch.get_rng_state()
    found = MaskedWords().evaluate(made, Batches(batches()))
    assert torch.equal(torch.get_rng_state(), state)
    first = Rank(range(2))
    MaskedWords().evaluate(made, Batches(batches()), first)
    assert MaskedWords().evaluate(made, Batches(batches()), Rank(range(2, 3), first.all)) == found


def test_a_model_that_reads_no_picture_gains_nothing(made):
    blind = model()
    with torch.no_grad():
        for layer in blind.encoders["fusion"].layer:
            layer.crossattention.self.value.weight.zero_()
    metrics = MaskedWords().evaluate(blind, Batches(batches()))["metrics"]
    assert metrics["gain"] == pytest.approx(0, abs=1e-6) and metrics["loss"] > 1


@pytest.mark.parametrize("names", [["a", "b"], ["a", "a", "b", "c", "c"], list("abcdefghij")])
def test_another_picture_is_never_the_same(names):
    rows = another(names).tolist()
    assert all(names[row] != name for row, name in zip(rows, names)) and rows == another(names).tolist()
    taken = {names[row] for row in rows}
    assert taken == set(names), "each is the other one of some picture"


def test_what_is_of_one_picture_is_one_observation():
    difference, group = torch.tensor([1.0, 3.0, 2.0, 6.0], dtype=torch.float64), torch.tensor([7, 7, 9, 5])
    assert paired(difference, group) == pytest.approx((3.0, (3 * (4 + 1 + 9) / 2) ** 0.5 / 4))
    twice = paired(difference.repeat(2), group.repeat(2))
    assert twice == pytest.approx(paired(difference, group)), "a text that stands twice is no second witness"


def test_batches_of_one_picture_are_left_out_and_texts_without_a_mask_are_an_error(made):
    found = MaskedWords().evaluate(made, Batches(batches(((2, 1), (3,)))))
    assert found["metrics"] == MaskedWords().evaluate(made, Batches(batches(((2, 1),))))["metrics"]
    with pytest.raises(ValueError, match="no batch that it can use"):
        MaskedWords().evaluate(made, Batches(batches(((3,),))))
    with pytest.raises(ValueError, match="no word is masked"):
        MaskedWords().evaluate(made, Batches(batches(masked=False)))


def test_data_that_do_not_say_what_is_masked_are_refused_before_anything_loads():
    with pytest.raises(ConfigError, match=r"read `@mask_text` of this stream, which needs `mask: "):
        model("evaluate.words.data.mask=null")
    assert recipes.load(str(RECIPE), missing_files=False).task_views("words") == {"mask_text"}


def test_its_table_and_figures(made):
    task = MaskedWords(tokenizer=SimpleNamespace(decode=lambda ids: " ".join(f"w{i}" for i in ids)))
    found = task.evaluate(made, Batches(batches()))
    heading, rows = task.table(found["metrics"], found["floor"])
    assert {len(row) for row in rows} == {len(heading)} == {3} and rows[0][1] == f"{found['metrics']['loss']:.3f}"
    assert rows[2][1].startswith(f"{found['metrics']['gain']:+.3f} ± ") and rows[3][0].startswith("floor")
    figure, = task.figures(found["examples"])
    assert task.figures([]) == [] and len(figure["items"]) == len(found["examples"]) > 4
    item, example = figure["items"][0], found["examples"][0]
    assert len(item["words"]) == len(example["ids"]) - 2 and item["image"] == example["image_id"] != example["other_id"]
    masked = [word for word in item["words"] if word[1]]
    assert masked == [("w3999", True, f"w{example['ids'][column]}") for column in example["columns"]]
    share = 100 * torch.tensor(-example["losses"][0][0]).exp()
    assert item["note"].startswith(f"{masked[0][2]} {share:.0f} %") and "; with another picture: " in item["note"]
