"""The released X2-VLM, computed a second time over the tensors of a checkpoint; and such checkpoints, of any size.

Written from a description of the released code, as ``release_forward``, whose image encoder, heads and plain formulas it takes: one
stack of BERT layers, the upper of which attend to the picture, too; one output layer; no gradient is stopped anywhere.
"""

import torch
from release_forward import PAD, Release, cross_entropy
from release_names import drawn, release_shapes

STACK = "text_encoder.bert.encoder.layer"
# sha256 of the sorted listing of the released model's state_dict(), lines `name<tab>shape<tab>dtype`, at base size.
LISTING_SHA256 = "22542dc10cb951fae7d24ed4fc3fea05cf306327ffd0dc3b9e934d2f5a2852d8"
BASE = dict(width=768, layers=12, fusion_layers=6, patch=16, grid=14, heads=12, vocab=30522, positions=512, dim=256)


class X2VLM(Release):
    """Losses of the released model; batches as ``Release`` takes them.

    Args:
        text_layers: how many layers of the stack read the text alone.
    """

    def __init__(self, tensors: dict, text_layers: int, text_heads: int, giou_eps: float = 0.0):
        super().__init__(tensors, text_heads, giou_eps)
        self.text_layers = text_layers

    def text(self, batch):
        return {"mlm": self.masked_words(self.encode_text(batch["masked_ids"]), batch)}

    def pairs(self, batch):
        text, image = self.encode_text(batch["ids"]), self.encode_image(batch["image"])
        return self.multimodal(batch, text, image, torch.ones(image.shape[:2], dtype=torch.bool))

    def match(self, batch, text, image, image_mask):
        mask, rows = batch["ids"] != PAD, []
        for label, texts, images in ((1, range(len(text)), range(len(text))), (0, range(len(text)), batch["image_negative"].tolist()),
                                     (0, batch["text_negative"].tolist(), range(len(text)))):
            for t, i in zip(texts, images):
                fused = self.fuse(text[t, None], mask[t, None], image[i, None], image_mask[i, None])[0, 0]
                rows.append(torch.log_softmax(self.head("itm_head", fused[None])[0], 0)[label])
        return -sum(rows) / len(rows)

    def words_in_view(self, batch, image, image_mask):
        text = self.encode_text(batch["masked_ids"])
        return self.masked_words(self.fuse(text, batch["ids"] != PAD, image, image_mask), batch)

    def masked_words(self, hidden, batch):
        rows = torch.stack([h[p] for h, p in zip(hidden, batch["masked_pos"])]).flatten(0, 1)
        labels, name = batch["masked_labels"].flatten(), "text_encoder.cls.predictions"
        asked = rows[labels != -100]
        x = 0.5 * (y := self.linear(f"{name}.transform.dense", asked)) * (1 + torch.erf(y / 2 ** 0.5))
        x = self.norm(f"{name}.transform.LayerNorm", x, 1e-12)
        scores = x @ self.w["text_encoder.bert.embeddings.word_embeddings.weight"].T + self.w[f"{name}.bias"]
        return cross_entropy(scores, labels[labels != -100])

    def boxes(self, batch, text, whole):
        everything = torch.ones(whole.shape[:2], dtype=torch.bool)
        guess = torch.sigmoid(self.head("bbox_head", self.fuse(text, batch["ids"] != PAD, whole, everything)[:, 0]))
        real = [row for row, is_image in enumerate(batch["is_image"].tolist()) if not is_image]
        l1 = sum((guess[row] - batch["box"][row]).abs().sum() for row in real)
        return l1 / len(real), sum(1 - self.giou(guess[row], batch["box"][row]) for row in real) / len(real)

    def encode_text(self, ids):
        name = "text_encoder.bert.embeddings"
        x = self.w[f"{name}.word_embeddings.weight"][ids] + self.w[f"{name}.position_embeddings.weight"][:ids.shape[1]]
        x = self.norm(f"{name}.LayerNorm", x + self.w[f"{name}.token_type_embeddings.weight"][0], 1e-12)
        for layer in range(self.text_layers):
            x = self.attend(f"{STACK}.{layer}.attention", x, x, ids != PAD, -1e4)
            x = self.feed_forward(f"{STACK}.{layer}", x)
        return x

    def fuse(self, text, text_mask, image, image_mask):
        x = text
        for layer in range(self.text_layers, self.layers(STACK)):
            x = self.attend(f"{STACK}.{layer}.attention", x, x, text_mask, -1e4)
            x = self.attend(f"{STACK}.{layer}.crossattention", x, image, image_mask, -1e9)
            x = self.feed_forward(f"{STACK}.{layer}", x)
        return x

    def norm(self, name, x, eps):
        """BERT's LayerNorms have their own constant, which the base class writes as RoBERTa's."""
        return super().norm(name, x, 1e-12 if name.startswith("text_encoder.") else eps)


def x2vlm_shapes(layers=2, fusion_layers=3, **sizes) -> dict:
    """{name: (shape, dtype)}; ``x2vlm_shapes(**BASE)`` is the released listing."""
    (lower, upper), out = (release_shapes(layers=n, **sizes) for n in (layers, fusion_layers)), {}
    renamed = {"text_encoder.lm_head.dense.": "text_encoder.cls.predictions.transform.dense.",
               "text_encoder.lm_head.layer_norm.": "text_encoder.cls.predictions.transform.LayerNorm.",
               "text_encoder.lm_head.": "text_encoder.cls.predictions.", "text_encoder.roberta.": "text_encoder.bert."}
    for name, (shape, dtype) in lower.items():
        if name.startswith("fusion_encoder.") or "lm_cap_head" in name or name.endswith("mask_token"):
            continue
        ours = next((new + name[len(old):] for old, new in renamed.items() if name.startswith(old)), name)
        out[ours] = ((2, shape[1]) if "token_type" in name else shape, dtype)
    prefix = "fusion_encoder.roberta.encoder.layer."
    for name, what in upper.items():
        if name.startswith(prefix):
            number, inner = name[len(prefix):].split(".", 1)
            out[f"{STACK}.{int(number) + layers}.{inner}"] = what
    return out


def x2vlm_state(seed=0, std=0.1, **sizes) -> dict:
    """A random checkpoint, tied where the release ties, its index tables and ids in place; as ``release_names.release_state``."""
    state = drawn(x2vlm_shapes(**sizes), seed, std)
    head = "text_encoder.cls.predictions"
    state[f"{head}.decoder.weight"] = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    state[f"{head}.decoder.bias"] = state[f"{head}.bias"]
    return state
