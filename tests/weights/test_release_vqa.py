"""Generative VQA under the released names gives the released code's loss, gradients and ranking, by a second computation of them.

As in ``test_release_losses``: plain float64 functions over the tensors, written from a description of the released code. That is
``text_decoder.*``, RoBERTa's causal language model over the fusion encoder's tokens. Ours ranks by the likelihood itself; the
release adds the first token's once more (``score: release``). The release's evaluation attends to padded question tokens, its
training does not: the questions' own mask is used here for both.
"""

import pytest
import torch
from release_forward import PAD, Release, cross_entropy, gelu
from release_names import release_state
from test_release_losses import BASE, EOS, SIZES, SMALL, error, from_release, pictures, texts, to_release

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, TextField
from xtoolkit.fields import AnswerField
from xtoolkit.model import Model

DECODER = "text_decoder"
RECIPE = """
_BASE_: {base}
losses: {{answer: {{type: AnswerGeneration, fusion: fusion}}}}
streams: {{vqa: {{batch_size: 4, losses: {{answer: 1}}, data: {{type: Questions, path: none.jsonl, answer_tokens: 7}}}}}}
optim: {{lr: 1e-3}}
train: {{steps: 1, output: outputs/none, precision: fp32, device: cpu}}
"""


class ReleasedVQA(Release):
    """The released VQA model's loss and ranking."""

    def fused(self, batch):
        everything = torch.ones(len(batch["image"]), SIZES["grid"] ** 2 + 1, dtype=torch.bool)
        text, mask = self.encode_text(batch["ids"]), batch["ids"] != PAD
        return self.fuse(text, mask, self.encode_image(batch["image"]), everything), mask

    def scores(self, ids, memory, memory_mask):
        """(A, L, V): what may follow each token of (A, L)."""
        name, real = f"{DECODER}.roberta.embeddings", ids != PAD
        positions = torch.cumsum(real.long(), 1) * real + PAD
        x = self.w[f"{name}.word_embeddings.weight"][ids] + self.w[f"{name}.position_embeddings.weight"][positions]
        x = self.norm(f"{name}.LayerNorm", x + self.w[f"{name}.token_type_embeddings.weight"][0], 1e-5)
        length, layers = ids.shape[1], f"{DECODER}.roberta.encoder.layer"
        before = torch.tensor([[b <= a for b in range(length)] for a in range(length)])
        for layer in range(self.layers(layers)):
            x = self.attend(f"{layers}.{layer}.attention", x, x, before & real[:, None], -1e4)
            x = self.attend(f"{layers}.{layer}.crossattention", x, memory, memory_mask, -1e9)
            x = self.feed_forward(f"{layers}.{layer}", x)
        y = self.norm(f"{DECODER}.lm_head.layer_norm", gelu(self.linear(f"{DECODER}.lm_head.dense", x)), 1e-5)
        return y @ self.w[f"{name}.word_embeddings.weight"].T + self.w[f"{DECODER}.lm_head.bias"]

    def cost(self, ids, memory, memory_mask):
        """The summed cross-entropy of one answer's tokens after the first, (L,) without padding."""
        scores = self.scores(ids[None, :-1], memory[None], memory_mask[None])[0]
        return cross_entropy(scores, ids[1:]) * (len(ids) - 1)

    def answer(self, batch):
        memory, mask = self.fused(batch)
        return sum(weight * self.cost(ids, memory[row], mask[row]) for ids, weight, row in batch["answers"]) / len(memory)

    def ranking(self, batch, candidates):
        """(B, C): the likelihoods, and what the release ranks by."""
        memory, mask = self.fused(batch)
        start = torch.zeros(len(memory), 1, dtype=torch.long)
        first = torch.softmax(self.scores(start, memory, mask)[:, 0], 1)
        whole = torch.stack([torch.stack([-self.cost(ids, m, real) for ids in candidates]) for m, real in zip(memory, mask)])
        return whole, whole + torch.stack([first[:, ids[1]] for ids in candidates], 1).log()


def field(several: list[torch.Tensor]) -> TextField:
    ids = torch.nn.utils.rnn.pad_sequence(several, batch_first=True, padding_value=PAD)
    return TextField(ids, ids != PAD, torch.arange(len(ids)))


def words(count, g) -> list[torch.Tensor]:
    """Answers of one to four words."""
    return [torch.cat([torch.tensor([0]), torch.randint(5, SIZES["vocab"], (1 + n % 4,), generator=g), torch.tensor([EOS])])
            for n in range(count)]


@pytest.fixture(scope="module", params=[torch.float64, torch.float32])
def both(request, tmp_path_factory):
    """The model, the second computation, a batch for each, and candidates."""
    dtype, path = request.param, tmp_path_factory.mktemp("vqa") / "vqa.yaml"
    path.write_text(RECIPE.format(base=BASE.parent / "model_base.yaml"))
    small = [one for one in SMALL if "_proj" not in one]
    made = recipes.load(str(path), small, missing_files=False)
    pretraining = recipes.load(str(BASE), SMALL, missing_files=False)
    state = release_state(seed=1, std=0.2, **SIZES)
    decoder = {n.replace("fusion_encoder", DECODER): t for n, t in release_state(seed=2, std=0.2, **SIZES).items()
               if n.startswith("fusion_encoder.") and not any(w in n for w in ("lm_cap_head", "position_ids", "lm_head.decoder"))}
    state, decoder = ({n: t.to(dtype) if t.is_floating_point() else t for n, t in one.items()} for one in (state, decoder))
    model = Model(made).to(dtype).train()
    ours = {n: t for n, t in from_release(state, pretraining)[0].items() if n.startswith(("encoders.vision.", "encoders.text.",
                                                                                           "encoders.fusion."))}
    ours = {n: t for n, t in ours.items() if ".lm_head." not in n} | {renamed(n): t for n, t in decoder.items()}
    model.load_state_dict(ours, strict=True)
    tensors = {n: t.double().requires_grad_() for n, t in (state | decoder).items() if t.is_floating_point()}
    g = torch.Generator().manual_seed(5)
    (text, given), (image, shown) = texts(4, g), pictures(4, g, dtype)
    said, row, weight = words(7, g), torch.tensor([0, 0, 1, 2, 2, 2, 3]), torch.rand(7, generator=g).to(dtype)
    answers = AnswerField(torch.tensor([2, 1, 3, 1]), field(said), row, weight)
    batch = Batch(text=text, image=image, answers=answers)
    return model, ReleasedVQA(tensors, SIZES["heads"]), pretraining, batch, \
        given | shown | {"answers": list(zip(said, weight.double(), row.tolist()))}, words(12, g)


def renamed(name: str) -> str:
    """Ours of a decoder's released name."""
    for theirs, ours in (("roberta.embeddings", "embeddings"), ("roberta.encoder", "decoder"), ("lm_head", "lm_head")):
        if name.startswith(f"{DECODER}.{theirs}."):
            return f"losses.answer.{ours}.{name.removeprefix(f'{DECODER}.{theirs}.')}"
    raise AssertionError(name)


def test_loss_and_gradients(both):
    model, release, pretraining, batch, given, _ = both
    tolerance = 1e-10 if batch.image.pixels.dtype == torch.float64 else 1e-5
    ours, theirs = model("vqa", batch)["answer"], release.answer(given)
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    named = dict(model.named_parameters())
    found = {n: g for n, g in zip(named, torch.autograd.grad(ours, list(named.values()), allow_unused=True)) if g is not None}
    wanted = torch.autograd.grad(theirs, list(release.w.values()), allow_unused=True)
    wanted = {n: g for n, g in zip(release.w, wanted) if g is not None}
    back, _ = to_release({n: g for n, g in found.items() if not n.startswith("losses.")}, pretraining)
    got = {n: g for n, g in back.items() if g.is_floating_point()}
    got |= {n: found[renamed(n)] for n in release.w if n.startswith(DECODER) and renamed(n) in found}
    assert got.keys() >= {n for n in wanted if "token_type" not in n} and len(wanted) > 150
    most = max(g.abs().max().item() for g in wanted.values())
    pad = f"{DECODER}.roberta.embeddings.position_embeddings.weight"
    errors = {n: error(got[n].double(), wanted[n], most if n.endswith("key.bias") else 1e-2 * most) for n in wanted if n != pad}
    worst = max(errors, key=errors.get)
    assert errors[worst] < tolerance, (worst, errors[worst])
    assert error(got[pad].double()[PAD + 1:], wanted[pad][PAD + 1:], 1e-2 * most) < tolerance  # the pads' own row apart


def test_ranking(both):
    model, release, _, batch, given, candidates = both
    tolerance = 1e-10 if batch.image.pixels.dtype == torch.float64 else 1e-5
    loss = model.eval().losses["answer"]
    with torch.no_grad():
        whole, theirs = release.ranking(given, candidates)
        for score, wanted in (("exact", whole), ("release", theirs)):
            found = loss.rank(model.features(batch), field(candidates), k=12, chunk=5, score=score)
            torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    model.train()
    assert not torch.equal(whole.argsort(1), theirs.argsort(1)), "the first token twice is another order"
