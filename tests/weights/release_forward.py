"""The released X-FM, computed a second time: losses as plain functions over the tensors of a checkpoint, by their released names.

Written from a description of the released code and independent of xtoolkit, which it is there to check: no module, no shared
pass, one head and one layer after the other, every formula spelt out. Works in whatever float type the tensors have.

Shape letters: B rows, I images, R regions, L text tokens, M masked tokens, N patches, D width.
"""

import math

import torch

PAD = 1
TEXT, FUSION = "text_encoder", "fusion_encoder"


class Release:
    """Losses of the released model.

    Args:
        tensors: {released name: tensor}; those that a loss reads may require gradients.
        text_heads: attention heads of the text and fusion encoders (12 at base size); the image encoder's are in its tables.
        giou_eps: added to the two areas that GIoU divides by; the release adds nothing.

    Every method takes a dict of tensors:
        ``ids`` (B, L) int64 padded with 1, ``masked_ids`` (B, L), ``masked_pos`` and ``masked_labels`` (B, M), the latter -100 in
        slots that do not count; ``image`` (I, 3, H, W); ``patch_mask`` (I, N) bool, True = masked; for regions ``image_index``
        (R,), ``box_patches`` (R, N) bool, ``box`` (R, 4) cx cy w h, ``is_image`` (R,) bool; ``image_negative`` (B,), the row of the
        wrong image for each text, and ``text_negative`` (B,), the row of the wrong text for each image.
    """

    def __init__(self, tensors: dict, text_heads: int, giou_eps: float = 0.0):
        self.w, self.text_heads, self.giou_eps = tensors, text_heads, giou_eps

    # ---- losses by stream ---------------------------------------------------------------------------------------------------
    def text(self, batch: dict) -> dict:
        hidden = self.encode_text(batch["masked_ids"])
        return {"mlm": self.masked_words(hidden, batch, TEXT)}

    def image(self, batch: dict) -> dict:
        return {"mim": self.masked_patches(batch)}

    def pairs(self, batch: dict) -> dict:
        text, image = self.encode_text(batch["ids"]), self.encode_image(batch["image"])
        everything = torch.ones(image.shape[:2], dtype=torch.bool)
        return self.multimodal(batch, text, image, everything) | {"mim": self.masked_patches(batch)}

    def region(self, batch: dict) -> dict:
        text, full = self.encode_text(batch["ids"]), self.encode_image(batch["image"])
        regions, masks = [], []
        for index, touched in zip(batch["image_index"].tolist(), batch["box_patches"]):
            patches = full[index, 1:]
            mean = sum(patches[n] for n in touched.nonzero()[:, 0]) / touched.sum()
            regions.append(torch.cat([mean[None], patches]))
            masks.append(torch.cat([torch.ones(1, dtype=torch.bool), touched]))
        losses = self.multimodal(batch, text, torch.stack(regions), torch.stack(masks))
        whole = full[batch["image_index"]]
        l1, giou = self.boxes(batch, text, whole)
        return losses | {"bbp.l1": l1, "bbp.giou": giou}

    def multimodal(self, batch, text, image, image_mask) -> dict:
        return {"itc": self.contrast(text, image), "itm": self.match(batch, text, image, image_mask),
                "imlm": self.words_in_view(batch, image, image_mask)}

    # ---- losses -------------------------------------------------------------------------------------------------------------
    def contrast(self, text, image):
        v, t = unit(self.linear("vision_proj", image[:, 0])), unit(self.linear("text_proj", text[:, 0]))
        temp = self.w["temp"]
        with torch.no_grad():
            temp.clamp_(0.001, 0.5)
        logits, own = v @ t.T / temp, torch.arange(len(v))
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    def match(self, batch, text, image, image_mask):
        text, mask = text.detach(), batch["ids"] != PAD
        other_image, other_text = batch["image_negative"], batch["text_negative"]
        positive = self.fuse(text, mask, image, image_mask)[:, 0]
        negative = self.fuse(torch.cat([text, text[other_text]]), torch.cat([mask, mask[other_text]]),
                             torch.cat([image[other_image], image]),
                             torch.cat([image_mask[other_image], image_mask]))[:, 0]
        logits = self.head("itm_head", torch.cat([positive, negative]))
        return cross_entropy(logits, torch.tensor([1] * len(positive) + [0] * len(negative)))

    def words_in_view(self, batch, image, image_mask):
        text = self.encode_text(batch["masked_ids"]).detach()
        return self.masked_words(self.fuse(text, batch["ids"] != PAD, image, image_mask), batch, FUSION)

    def masked_words(self, hidden, batch, encoder):
        rows = torch.stack([h[p] for h, p in zip(hidden, batch["masked_pos"])]).flatten(0, 1)
        labels = batch["masked_labels"].flatten()
        return cross_entropy(self.language_head(encoder, rows)[labels != -100], labels[labels != -100])

    def masked_patches(self, batch):
        target = self.encode_image(batch["image"]).detach()
        guess = self.encode_image(batch["image"], batch["patch_mask"])
        error = (guess - target) ** 2
        return error[:, 1:][batch["patch_mask"]].mean() + error[:, 0].mean()

    def boxes(self, batch, text, whole):
        everything = torch.ones(whole.shape[:2], dtype=torch.bool)
        fused = self.fuse(text.detach(), batch["ids"] != PAD, whole, everything)[:, 0]
        guess = 1 / (1 + torch.exp(-self.head("bbox_head", fused)))
        real = (~batch["is_image"]).to(guess.dtype)
        l1 = (guess - batch["box"]).abs().sum(1)
        giou = torch.stack([1 - self.giou(a, b) for a, b in zip(guess, batch["box"])])
        return (l1 * real).sum() / real.sum(), (giou * real).sum() / real.sum()

    def giou(self, a, b):
        a, b = corners(a), corners(b)
        intersection = torch.clamp(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]), min=0) * \
            torch.clamp(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]), min=0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
        around = (torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])) * \
            (torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1]))
        return intersection / (union + self.giou_eps) - (around - union) / (around + self.giou_eps)

    # ---- encoders -----------------------------------------------------------------------------------------------------------
    def encode_image(self, image, patch_mask=None):
        """(I, 1 + N, D): the mean of the normed patches, then the patches."""
        name = "vision_encoder"
        filters, bias = self.w[f"{name}.patch_embed.proj.weight"], self.w[f"{name}.patch_embed.proj.bias"]
        size = filters.shape[-1]
        side = image.shape[-1] // size
        patches = []
        for row in range(side):
            for column in range(side):
                window = image[:, :, row * size:(row + 1) * size, column * size:(column + 1) * size]
                patches.append(window.flatten(1) @ filters.flatten(1).T + bias)
        x = torch.stack(patches, 1)
        if patch_mask is not None:
            keep = (~patch_mask).to(x.dtype)[..., None]
            x = x * keep + self.w[f"{name}.mask_token"] * (1 - keep)
        x = torch.cat([self.w[f"{name}.cls_token"].expand(len(x), 1, -1), x], 1)
        index = offsets(side)
        for layer in range(self.layers(f"{name}.blocks")):
            x = self.image_block(f"{name}.blocks.{layer}", x, index)
        x = self.norm(f"{name}.fc_norm", x[:, 1:], 1e-6)
        return torch.cat([x.sum(1, keepdim=True) / x.shape[1], x], 1)

    def image_block(self, name, x, index):
        y = self.norm(f"{name}.norm1", x, 1e-6)
        to_q, to_k, to_v = self.w[f"{name}.attn.qkv.weight"].chunk(3)
        q, k, v = y @ to_q.T + self.w[f"{name}.attn.q_bias"], y @ to_k.T, y @ to_v.T + self.w[f"{name}.attn.v_bias"]
        table = self.w[f"{name}.attn.relative_position_bias_table"]
        heads = table.shape[1]
        parts = []
        for head, (a, b, c) in enumerate(zip(*(t.chunk(heads, -1) for t in (q, k, v)))):
            scores = (a * a.shape[-1] ** -0.5) @ b.transpose(1, 2) + table[:, head][index]
            parts.append(softmax(scores) @ c)
        x = x + self.w[f"{name}.gamma_1"] * self.linear(f"{name}.attn.proj", torch.cat(parts, -1))
        y = self.norm(f"{name}.norm2", x, 1e-6)
        y = self.linear(f"{name}.mlp.fc2", gelu(self.linear(f"{name}.mlp.fc1", y)))
        return x + self.w[f"{name}.gamma_2"] * y

    def encode_text(self, ids):
        """(B, L, D), the states of the last layer."""
        name = f"{TEXT}.roberta.embeddings"
        real = (ids != PAD).long()
        positions = torch.cumsum(real, 1) * real + PAD
        x = self.w[f"{name}.word_embeddings.weight"][ids] + self.w[f"{name}.position_embeddings.weight"][positions]
        x = self.norm(f"{name}.LayerNorm", x + self.w[f"{name}.token_type_embeddings.weight"][0], 1e-5)
        layers = f"{TEXT}.roberta.encoder.layer"
        for layer in range(self.layers(layers)):
            x = self.attend(f"{layers}.{layer}.attention", x, x, ids != PAD, -1e4)
            x = self.feed_forward(f"{layers}.{layer}", x)
        return x

    def fuse(self, text, text_mask, image, image_mask):
        """(B, L, D): the text's states as they are, through layers that also look at the image."""
        x, layers = text, f"{FUSION}.roberta.encoder.layer"
        for layer in range(self.layers(layers)):
            x = self.attend(f"{layers}.{layer}.attention", x, x, text_mask, -1e4)
            x = self.attend(f"{layers}.{layer}.crossattention", x, image, image_mask, -1e9)
            x = self.feed_forward(f"{layers}.{layer}", x)
        return x

    def attend(self, name, x, source, mask, hidden):
        """Post-norm attention of x to a source whose masked tokens, (B, n) or for each token of x (B, L, n), get the score ``hidden``
        on top of their own."""
        q, k, v = (self.linear(f"{name}.self.{part}", t) for part, t in (("query", x), ("key", source), ("value", source)))
        extra = torch.where(mask if mask.dim() == 3 else mask[:, None], 0.0, hidden).to(x.dtype)
        parts = []
        for a, b, c in zip(*(t.chunk(self.text_heads, -1) for t in (q, k, v))):
            parts.append(softmax(a / math.sqrt(a.shape[-1]) @ b.transpose(1, 2) + extra) @ c)
        y = self.linear(f"{name}.output.dense", torch.cat(parts, -1))
        return self.norm(f"{name}.output.LayerNorm", y + x, 1e-5)

    def feed_forward(self, name, x):
        y = self.linear(f"{name}.output.dense", gelu(self.linear(f"{name}.intermediate.dense", x)))
        return self.norm(f"{name}.output.LayerNorm", y + x, 1e-5)

    # ---- parts --------------------------------------------------------------------------------------------------------------
    def language_head(self, encoder, hidden):
        """Scores of every word, by the encoder's own word embeddings, to which the release ties the output matrix."""
        y = self.norm(f"{encoder}.lm_head.layer_norm", gelu(self.linear(f"{encoder}.lm_head.dense", hidden)), 1e-5)
        return y @ self.w[f"{encoder}.roberta.embeddings.word_embeddings.weight"].T + self.w[f"{encoder}.lm_head.bias"]

    def head(self, name, x):
        return self.linear(f"{name}.3", gelu(self.norm(f"{name}.1", self.linear(f"{name}.0", x), 1e-5)))

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred ** 2).mean(-1, keepdim=True) + eps)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def layers(self, prefix) -> int:
        return 1 + max(int(name[len(prefix) + 1:].split(".")[0]) for name in self.w if name.startswith(prefix + "."))


def offsets(side: int):
    """(1 + N, 1 + N): the row of the position table for query i and key j; token 0 is CLS."""
    rows = (2 * side - 1) ** 2 + 3
    index = torch.empty(1 + side * side, 1 + side * side, dtype=torch.long)
    for i in range(side * side):
        for j in range(side * side):
            down, right = i // side - j // side, i % side - j % side
            index[1 + i, 1 + j] = (down + side - 1) * (2 * side - 1) + right + side - 1
    index[0, :], index[:, 0] = rows - 3, rows - 2
    index[0, 0] = rows - 1
    return index


def corners(box):
    cx, cy, w, h = box
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


def unit(x):
    return x / torch.sqrt((x ** 2).sum(-1, keepdim=True))


def softmax(x):
    e = torch.exp(x - x.max(-1, keepdim=True).values.detach())
    return e / e.sum(-1, keepdim=True)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def cross_entropy(logits, labels):
    highest = logits.max(1, keepdim=True).values.detach()
    total = torch.log(torch.exp(logits - highest).sum(1)) + highest[:, 0]
    return (total - logits[torch.arange(len(labels)), labels]).mean()
