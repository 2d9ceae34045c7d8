"""Matching: the pairs of the loss itself one by one, its figures by hand, and what they do not depend on."""

from types import SimpleNamespace

import pytest
import torch

from batches import Batches
from pairs import Rank, batches, model
from xtoolkit.batch import Batch, stable_key
from xtoolkit.tasks import Matching
from xtoolkit.tasks.base import token_ids
from xtoolkit.tasks.matching import auc


@pytest.fixture(scope="module")
def made():
    """A model whose matching head sees differences: its last layer is drawn larger."""
    found = model()
    with torch.no_grad():
        found.losses["itm"].head[3].weight.mul_(20)
    return found


def by_hand(model):
    """[(image_id, ids, label, log odds)] of every pair that counts, each in a pass of its own."""
    loss, found = model.losses["itm"], []
    for batch in batches():
        texts_of = [torch.nonzero(batch["image_index"] == row)[:, 0].tolist() for row in range(len(batch.image.image_id))]
        for place in range(max(map(len, texts_of))):
            rows = [(picture, texts[place]) for picture, texts in enumerate(texts_of) if len(texts) > place]
            pictures, texts = torch.tensor(rows).T
            part = Batch(text=batch.text.select(texts), image=batch.image.select(pictures))
            names, ids = [batch.image.image_id[row] for row in pictures], token_ids(part.text)
            torch.manual_seed(stable_key(*names, *ids))
            image, text, legal = loss.draw(model.features(part)["sim"], part)
            own = range(len(rows))
            pairs = [(row, row, 1) for row in own] + [(image[row].item(), row, 0) for row in own if legal[row]]
            for picture, word, label in pairs + [(row, text[row].item(), 0) for row in own if legal[row]]:
                one = Batch(text=part.text.select(torch.tensor([word])), image=part.image.select(torch.tensor([picture])))
                no, yes = loss.match(model.features(one)["fusion"])[0].tolist()
                found.append((names[picture], ids[word], label, yes - no))
    return found


@torch.no_grad()
def test_its_pairs_are_those_that_the_loss_draws_and_its_figures_are_theirs(made):
    task, kept = Matching(), {}
    score, task.score = task.score, lambda outputs: kept.update(outputs) or score(outputs)
    found = task.evaluate(made, Batches(batches()))
    expected = by_hand(made)
    assert [*zip(kept["image_id"], kept["ids"], kept["label"].tolist())] == [one[:3] for one in expected]
    assert kept["odds"].tolist() == pytest.approx([one[3] for one in expected], abs=1e-3)
    true, drawn = ([one[3] for one in expected if one[2] == label] for label in (1, 0))
    assert len(true) == 20 and 0 < len(drawn) < 40, "a picture that is alone in its round has no negative"
    shares = sum(x > 0 for x in true) / len(true), sum(x <= 0 for x in drawn) / len(drawn)
    above = sum((x > y) + (x == y) / 2 for x in true for y in drawn) / len(true) / len(drawn)
    assert found["metrics"] == pytest.approx({"accuracy": 50 * sum(shares), "true.accuracy": 100 * shares[0],
                                              "drawn.accuracy": 100 * shares[1], "auc": 100 * above})
    assert 0 < min(shares) and max(shares) < 1, "an answer that is always the same would show nothing"


def test_nothing_is_drawn_from_the_generator_of_training_and_a_figure_repeats(made):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = Matching().evaluate(made, Batches(batches()))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert Matching().evaluate(made, Batches(batches())) == found
    first = Rank(range(1))
    Matching().evaluate(made, Batches(batches()), first)
    assert Matching().evaluate(made, Batches(batches()), Rank(range(1, 3), first.all)) == found


@pytest.mark.parametrize("answer", [-1.0, 0.0, 1.0])
def test_one_answer_for_all_is_the_floor(answer):
    same = model()
    with torch.no_grad():
        same.losses["itm"].head[3].weight.zero_()
        same.losses["itm"].head[3].bias.copy_(torch.tensor([0.0, answer]))
    found = Matching().evaluate(same, Batches(batches()))
    assert {name: found["metrics"][name] for name in found["floor"]} == found["floor"] == {"accuracy": 50.0, "auc": 50.0}


def test_auc_by_hand():
    scores, true = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0, 2.0]), torch.tensor([True, True, False, False, False, True])
    assert auc(scores, true) == pytest.approx((3 + (0.5 + 0.5 + 1) + 3) / 9)
    assert auc(scores, ~true) == pytest.approx(1 - auc(scores, true))


def test_data_of_one_picture_are_an_error(made):
    with pytest.raises(ValueError, match="raise `batch_size`"):
        Matching().evaluate(made, Batches(batches(((3,), (2,)))))


def test_its_table_and_figures(made):
    task = Matching(tokenizer=SimpleNamespace(decode=lambda ids: f" {len(ids)} words"))
    found = task.evaluate(made, Batches(batches()))
    heading, (row, floor) = task.table(found["metrics"], found["floor"])
    assert len(heading) == len(row) == len(floor) and row[1] == f"{found['metrics']['accuracy']:.1f}"
    assert floor[1:] == ["50.0", "–", "–", "50.0"] and task.figures([]) == []
    figure, = task.figures(found["examples"])
    notes = [item["note"].split(",")[0] for item in figure["items"]]
    assert notes == sorted(notes, reverse=True) and set(notes) == {"a true pair", "a drawn pair"}
    for item, example in zip(figure["items"], found["examples"]):
        assert item["right"] == (example["true"] == (example["odds"] > 0)) and item["image"] == example["image_id"]
        assert item["caption"] == f"{len(example['ids'])} words"
