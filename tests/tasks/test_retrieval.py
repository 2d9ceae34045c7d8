"""Retrieval: the dual encoder and the re-ranking against brute force, and how often keys and values are projected."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist, nn

from batches import Batches, Two
from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.encoders.similarity import Similarity
from xtoolkit.features import Encoded, Features
from xtoolkit.graph import EncoderSpec, Graph
from xtoolkit.tasks import Retrieval, Task
from xtoolkit.tasks.comparing import sides
from xtoolkit.tasks.ranking import below_scored, chance, hits_both_ways, recalls

WIDTH = 8
FIELDS = {"text": TextField, "image": ImageField}


class Pictures(nn.Module):
    """(I, 5, D): a summary and four patches, from the pixels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, WIDTH)

    def forward(self, *, view, image):
        patches = self.layer(image.pixels.flatten(2).transpose(1, 2))
        return Encoded.of(torch.cat([patches.mean(1, keepdim=True), patches], 1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, WIDTH)

    def forward(self, *, view, text):
        return Encoded.of(self.table(text.ids), text.mask)


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 4)

    def forward(self, *, view, x):
        return nn.functional.normalize(self.layer(x.pooled), dim=-1)


class Dot(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([0.07]))

    def forward(self, *, view, image, text):
        return SimpleNamespace(image_to_text=image @ text.T / self.temperature)


class Cross(nn.Module):
    """Text attends to the picture; counts the pictures whose keys and values it projects, and the rows it fuses."""

    def __init__(self):
        super().__init__()
        self.key = nn.Linear(WIDTH, WIDTH)
        self.projected, self.rows, self.tokens = [], [], []

    def project(self, tokens):
        self.projected.append(tokens.shape[0])
        return self.key(tokens)

    def forward(self, *, view, text, image):
        (source, index), = image.parts
        keys = source.memo(self, self.project)[index if index is not None else slice(None)]
        self.rows.append(len(text))
        self.tokens.append(text.mask.shape[1])
        weight = (text.tokens @ keys.transpose(1, 2)).masked_fill(~image.mask[:, None], -torch.inf).softmax(-1)
        mixed = text.tokens + weight @ keys
        mean = (mixed * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True)
        return Encoded.of(torch.cat([mean[:, None], mixed], 1).tanh())


class Matching(nn.Module):
    fusion = "fusion"

    def __init__(self, constant=False):
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)
        if constant:
            nn.init.zeros_(self.head.weight)

    def match(self, fused):
        return self.head(fused.pooled)


class Model(nn.Module):
    def __init__(self, constant=False, precision="fp32"):
        super().__init__()
        self.recipe = SimpleNamespace(train=SimpleNamespace(precision=precision))
        torch.manual_seed(0)
        wiring = {"vision": {"image": "$image"}, "text": {"text": "$text"},
                  "fusion": {"text": "text", "image": "vision"}, "vision_proj": {"x": "vision"},
                  "text_proj": {"x": "text"}, "sim": {"image": "vision_proj", "text": "text_proj"}}
        self.encoders = nn.ModuleDict({"vision": Pictures(), "text": Words(), "fusion": Cross(), "vision_proj": Unit(),
                                       "text_proj": Unit(), "sim": Dot()})
        self.losses = nn.ModuleDict({"itm": Matching(constant)})
        self.graph = Graph({name: EncoderSpec(name, inputs) for name, inputs in wiring.items()}, FIELDS)

    def encoder(self, name):
        return self.encoders[name]

    def features(self, batch):
        return Features(self.graph, self.encoders, batch)


def batches(counts=((2, 3, 1), (4, 1), (5,)), seed=0):
    """Pictures with ``counts`` captions each, in three batches whose texts have different longest lengths."""
    generator = torch.Generator().manual_seed(seed)
    for number, captions in enumerate(counts):
        index = torch.arange(len(captions)).repeat_interleave(torch.tensor(captions))
        length = 4 + number
        mask = torch.arange(length) < torch.randint(3, length + 1, (len(index), 1), generator=generator)
        ids = torch.randint(3, 50, (len(index), length), generator=generator).where(mask, torch.tensor(1))
        ids[:, 0] = 3 + 16 * number + torch.arange(len(ids))  # no two texts with one summary: the sort knows no ties
        pixels = torch.randn(len(captions), 3, 2, 2, generator=generator)
        yield Batch(text=TextField(ids, mask), image_index=index,
                    image=ImageField(pixels, image_id=[f"{number}-{i}" for i in range(len(captions))]))


@torch.no_grad()
def by_hand(model):
    """Similarities and both matching logits (I, T) of every pair, one pair at a time; and the owner of each text."""
    pictures, texts, owner = [], [], []
    for batch in batches():
        for text in range(len(batch.text.ids)):
            owner.append(len(pictures) + batch["image_index"][text].item())
            length = int(batch.text.mask[text].sum())
            texts.append(TextField(batch.text.ids[text:text + 1, :length], batch.text.mask[text:text + 1, :length]))
        pictures += [ImageField(p[None]) for p in batch.image.pixels]
    similarity, unlike, alike = torch.zeros(3, len(pictures), len(texts))
    for i, picture in enumerate(pictures):
        for t, text in enumerate(texts):
            f = model.features(Batch(text=text, image=picture))
            similarity[i, t] = (f["vision_proj"] @ f["text_proj"].T)[0, 0]
            unlike[i, t], alike[i, t] = model.losses["itm"].match(f["fusion"])[0]
    return similarity, (unlike, alike), torch.tensor(owner)


def reranked(similarity, logits, owner, k):
    """Python sorting: the k best by similarity in the order of logits, then the rest. As scores: minus the place."""
    t2i, i2t = torch.zeros_like(similarity), torch.zeros_like(similarity)
    for scores, out, other in ((similarity.T, t2i.T, logits.T), (similarity, i2t, logits)):
        for q in range(len(scores)):
            order = sorted(range(scores.shape[1]), key=lambda c: -scores[q, c].item())
            order = sorted(order[:k], key=lambda c: -other[q, c].item()) + order[k:]
            for place, candidate in enumerate(order):
                out[q, candidate] = -place
    return recalls(hits_both_ways(t2i, i2t, owner))


@pytest.mark.parametrize("k, pairs_per_pass", [(1, 64), (3, 2), (3, 5), (4, 64), (256, 7), (256, 64)])
def test_all_rows_equal_brute_force(k, pairs_per_pass):
    model = Model()
    found = Retrieval(match="itm", k=k, pairs_per_pass=pairs_per_pass).evaluate(model, Batches(batches()))["metrics"]
    similarity, (unlike, alike), owner = by_hand(model)
    ways = {"dual": recalls(hits_both_ways(similarity, similarity, owner)), "matched": reranked(similarity, alike, owner, k),
            "combined": reranked(similarity, alike - unlike + similarity / model.encoders["sim"].temperature.item(), owner, k)}
    expected = {f"{way}.{name}": value for way, values in ways.items() for name, value in values.items()}
    for way in ("matched", "combined"):
        for name in ("t2i_r10", "i2t_r10", "r_mean"):
            gain, low, high = (found.pop(f"{way}.{name}_gain{end}") for end in ("", "_low", "_high"))
            assert gain == pytest.approx(ways[way][name] - ways["dual"][name]) and low <= high
    assert found == pytest.approx(expected) and len(found) == 21


@pytest.mark.parametrize("k, pairs_per_pass", [(2, 4), (3, 64), (256, 3)])
def test_each_picture_is_projected_once_and_no_pair_is_fused_twice(k, pairs_per_pass):
    model = Model()
    fusion = model.encoders["fusion"]
    Retrieval(match="itm", k=k, pairs_per_pass=pairs_per_pass).evaluate(model, Batches(batches()))
    assert sum(fusion.projected) == 6 and max(fusion.rows) <= pairs_per_pass
    wanted = torch.zeros(6, 16, dtype=torch.bool)
    similarity = by_hand(model)[0]
    wanted.scatter_(0, similarity.topk(min(k, 6), dim=0).indices, True)
    wanted.scatter_(1, similarity.topk(min(k, 16), dim=1).indices, True)
    fusion.rows.clear()
    Retrieval(match="itm", k=k, pairs_per_pass=pairs_per_pass).evaluate(model, Batches(batches()))
    assert sum(fusion.rows) == wanted.sum()


def test_texts_are_fused_without_the_padding_of_longer_ones():
    model = Model()
    Retrieval(match="itm", pairs_per_pass=1).evaluate(model, Batches(batches()))
    lengths = torch.cat([b.text.mask.sum(1) for b in batches()])
    assert sorted(model.encoders["fusion"].tokens) == sorted(lengths.tolist() * 6)


def test_a_constant_matching_head_gets_chance_among_all():
    found = Retrieval(match="itm").evaluate(Model(constant=True), Batches(batches()))
    owner = by_hand(Model())[2]
    for name, value in chance(6, owner).items():
        assert found["metrics"][f"matched.{name}"] == pytest.approx(value)
        assert found["metrics"][f"combined.{name}"] == found["metrics"][f"dual.{name}"]
        assert found["floor"][f"matched.{name}"] == found["floor"][f"dual.{name}"] == pytest.approx(value)


def test_without_a_matching_loss_there_is_one_row():
    found = Retrieval(sim="sim", match=None).evaluate(Model(), Batches(batches()))
    assert len(found["metrics"]) == 7 and all(name.startswith("dual.") for name in found["metrics"])


def test_examples_name_the_right_picture_and_its_rank():
    model = Model()
    examples = Retrieval(match=None).evaluate(model, Batches(batches()))["examples"]
    similarity, _, owner = by_hand(model)
    names = [name for batch in batches() for name in batch.image.image_id]
    ids = [row[mask].tolist() for b in batches() for row, mask in zip(b.text.ids, b.text.mask)]
    assert 4 <= len(examples) <= 8
    for example in examples:
        text = ids.index(example["ids"])
        order = similarity[:, text].argsort(descending=True).tolist()
        assert example["pictures"] == [names[i] for i in order[:5]]
        assert example["right"] == names[owner[text]] and order[example["rank"] - 1] == owner[text]


def test_unscored_candidates_stay_below_and_in_their_order():
    logits, similarity = torch.tensor([[-9.0, 5.0, 0.0, 0.0]]), torch.tensor([[1.0, 2.0, 30.0, 20.0]])
    found = below_scored(logits, torch.tensor([[True, True, False, False]]), similarity)
    assert found.argsort(descending=True).tolist() == [[1, 0, 2, 3]]


def test_bf16_scores_are_ranked_in_full_precision():
    model = Model(precision="bf16")
    seen = []
    model.encoders["sim"].register_forward_hook(lambda module, args, out: seen.append(out.image_to_text.dtype))
    model.losses["itm"].head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    model.encoders["vision"].layer.register_forward_hook(lambda module, args, out: runs.append(out.dtype))
    runs = []
    Retrieval(match="itm").evaluate(model, Batches(batches()))
    assert set(seen) == {torch.float32} and set(runs) == {torch.bfloat16}


def test_no_texts_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no batch"):
        Retrieval().evaluate(Model(), Batches())


def test_an_encoder_with_the_wrong_sides_is_named():
    graph = Graph({"text": EncoderSpec("text", {"text": "$text"}),
                   "sim": EncoderSpec("sim", {"a": "text", "b": "text"})}, FIELDS)
    with pytest.raises(ValueError, match="`sim`"):
        sides(graph, "sim")


def test_what_it_reads_is_declared():
    (need,) = Retrieval.needs({"sim": "alike", "match": "itm", "k": 3})
    assert need.ref == "alike" and not need.grad and Retrieval.HEADS == {"match": "match"}


def test_it_suggests_itself_where_an_encoder_compares():
    assert Retrieval.suggest({"text": Words, "sim": Similarity}, {"a": nn.Linear, "itm": Matching}) == {
        "type": "Retrieval", "sim": "sim", "match": "itm"}
    assert Retrieval.suggest({"sim": Similarity}, {}) == {"type": "Retrieval", "sim": "sim", "match": None}
    assert Retrieval.suggest({"text": Words}, {"itm": Matching}) is None


def test_its_table_stands_beside_chance_and_a_figure_shows_each_text():
    task = Retrieval(match="itm", tokenizer=SimpleNamespace(decode=lambda ids: f" {len(ids)} words"))
    found = task.evaluate(Model(), Batches(batches()))
    heading, rows = task.table(found["metrics"], found["floor"])
    assert [row[0] for row in rows] == ["dual encoder", "re-ranked by fusion", "re-ranked by fusion: gain, 95 %",
                                        "re-ranked by both", "re-ranked by both: gain, 95 %", "floor: chance"]
    metrics = found["metrics"]
    assert {len(row) for row in rows} == {len(heading)} == {8} and rows[5][7] == f"{found['floor']['dual.r_mean']:.1f}"
    assert rows[1][3] == f"{metrics['matched.t2i_r10']:.1f}" and rows[3][7] == f"{metrics['combined.r_mean']:.1f}"
    gain, low, high = (metrics[f"combined.i2t_r10_gain{end}"] for end in ("", "_low", "_high"))
    assert rows[4][1:] == ["", "", *rows[4][3:4], "", "", f"{gain:+.1f} ({low:+.1f} to {high:+.1f})", rows[4][7]]
    assert {f"{way}.{metric}" for metric in task.HEADLINES for way in ("dual", "matched", "combined")} <= metrics.keys()
    names = [name for batch in batches() for name in batch.image.image_id]
    example = {"ids": [3, 4], "right": "2-0", "pictures": names[:5], "rank": 6, "way": "dual"}
    lead, missed = task.figures([example])
    assert lead["text"].startswith("Texts spread evenly") and task.figures([]) == []
    assert missed["title"] == "“2 words”" and missed["text"] == "right picture at place 6"
    assert [item["image"] for item in missed["items"]] == [*names[:5], "2-0"] and missed["items"][5]["apart"]
    _, first = task.figures([example | {"right": names[0], "rank": 1}])
    assert [item["right"] for item in first["items"]] == [True, False, False, False, False]


# ---- two processes
# ------------------------------------------------------------------------------------------------------
class Names(Task):
    """Of the plain kind: keeps tensors and lists."""

    def predict(self, f, batch):
        return {"owner": batch["image_index"], "name": list(batch.image.image_id)}

    def score(self, outputs):
        return {"texts": float(len(outputs["owner"])), "owners": outputs["owner"].tolist()}

    def examples(self, outputs):
        return outputs["name"]


def in_a_group(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, found = Model(), {}
    for k in (1, 3, 256):
        found[k] = Retrieval(match="itm", k=k).evaluate(model, Batches(batches()), Two())
    found["names"] = Names().evaluate(model, Batches(batches()), Two())
    found["projected"] = sum(model.encoders["fusion"].projected)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_figures_of_one(tmp_path):
    torch.multiprocessing.spawn(in_a_group, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.pop("projected") == 9 and second.pop("projected") == 9  # 3 times 3 pictures each: none twice
    assert first == second
    assert first.pop("names") == Names().evaluate(Model(), Batches(batches()))
    for k, found in first.items():
        assert found == Retrieval(match="itm", k=k).evaluate(Model(), Batches(batches()))


# ---- counts and rows
# -------------------------------------------------------------------------------------------------------
def test_another_number_of_pictures_or_captions_is_refused():
    Retrieval(expect={"images": 6, "captions": 16}).evaluate(Model(), Batches(batches()))
    with pytest.raises(ValueError, match=r"`expect` is not met: the data have 6 images, not 1,000; 16 captions, not 5,000\. "
                                         r"Another split"):
        Retrieval(expect={"images": 1000, "captions": 5000}).evaluate(Model(), Batches(batches()))


def test_a_row_of_each_text_is_kept_and_their_mean_is_the_recall():
    found = Retrieval(match="itm", k=3).evaluate(Model(), Batches(batches()))
    rows = [json.loads(line) for line in found["files"]["samples.jsonl"].splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 16 and len({row["image_id"] for row in rows}) == 6
    later = Retrieval(match="itm", k=3).evaluate(Model(), Batches(list(batches())[1:]))["files"]["samples.jsonl"].splitlines()
    assert [json.loads(line)["id"] for line in later] == [row["id"] for row in rows][-len(later):], "what came before changes no name"
    for way in ("dual", "matched", "combined"):
        assert 100 * sum(row[f"{way}.t2i_r1"] for row in rows) / 16 == pytest.approx(found["metrics"][f"{way}.t2i_r1"])
    assert all(row["score"] == row["combined.t2i_r1"] for row in rows)
