"""The names, shapes and types of the released X-FM checkpoint, in its order, for any sizes; and files made from them."""

import torch

from xtoolkit.encoders.beit import relative_position_index

# sha256 of the listing of the released model's state_dict(), a line `name<tab>shape<tab>dtype` each, at base size.
LISTING_SHA256 = "661e68d6baab8fd13f1b575347c7e881f2283db83aef7279f4b74423e544126d"
BASE = dict(width=768, layers=12, patch=16, grid=14, heads=12, vocab=50265, positions=514, dim=256)


def release_shapes(width=16, layers=2, patch=8, grid=4, heads=2, vocab=60, positions=24, dim=8) -> dict:
    """{name: (shape, dtype)}; ``release_shapes(**BASE)`` is the released listing."""
    f = torch.float32
    out = {"temp": ((), f)}

    def put(name, *shape, dtype=f):
        out[name] = (shape, dtype)

    def linear(name, rows, columns):
        put(f"{name}.weight", rows, columns)
        put(f"{name}.bias", rows)

    def norm(name, size):
        put(f"{name}.weight", size)
        put(f"{name}.bias", size)

    def embeddings(at):
        put(f"{at}.position_ids", 1, positions, dtype=torch.int64)
        put(f"{at}.word_embeddings.weight", vocab, width)
        put(f"{at}.position_embeddings.weight", positions, width)
        put(f"{at}.token_type_embeddings.weight", 1, width)
        norm(f"{at}.LayerNorm", width)

    def attention(at):
        for part in ("query", "key", "value"):
            linear(f"{at}.self.{part}", width, width)
        linear(f"{at}.output.dense", width, width)
        norm(f"{at}.output.LayerNorm", width)

    def encoder(at, cross):
        embeddings(f"{at}.roberta.embeddings")
        for i in range(layers):
            layer = f"{at}.roberta.encoder.layer.{i}"
            attention(f"{layer}.attention")
            if cross:
                attention(f"{layer}.crossattention")
            linear(f"{layer}.intermediate.dense", 4 * width, width)
            linear(f"{layer}.output.dense", width, 4 * width)
            norm(f"{layer}.output.LayerNorm", width)
        for head in ("lm_head", "lm_cap_head"):
            put(f"{at}.{head}.bias", vocab)
            linear(f"{at}.{head}.dense", width, width)
            norm(f"{at}.{head}.layer_norm", width)
            linear(f"{at}.{head}.decoder", vocab, width)

    put("vision_encoder.cls_token", 1, 1, width)
    put("vision_encoder.mask_token", 1, 1, width)
    put("vision_encoder.patch_embed.proj.weight", width, 3, patch, patch)
    put("vision_encoder.patch_embed.proj.bias", width)
    tokens = grid * grid + 1
    for i in range(layers):
        block = f"vision_encoder.blocks.{i}"
        put(f"{block}.gamma_1", width)
        put(f"{block}.gamma_2", width)
        norm(f"{block}.norm1", width)
        put(f"{block}.attn.q_bias", width)
        put(f"{block}.attn.v_bias", width)
        put(f"{block}.attn.relative_position_bias_table", (2 * grid - 1) ** 2 + 3, heads)
        put(f"{block}.attn.relative_position_index", tokens, tokens, dtype=torch.int64)
        put(f"{block}.attn.qkv.weight", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
    norm("vision_encoder.fc_norm", width)
    encoder("text_encoder", cross=False)
    linear("vision_proj", dim, width)
    linear("text_proj", dim, width)
    for head, outputs in (("itm_head", 2), ("bbox_head", 4)):
        linear(f"{head}.0", 2 * width, width)
        norm(f"{head}.1", 2 * width)
        linear(f"{head}.3", outputs, 2 * width)
    encoder("fusion_encoder", cross=True)
    return out


def release_state(seed=0, std=0.1, **sizes) -> dict:
    """A checkpoint under the released names: random, tied where the release ties, its index tables and ids in place.

    Args:
        std: of every tensor but norms, which are spread around 1, and the temperature, 0.09.
        sizes: as in ``release_shapes``.
    """
    state = drawn(release_shapes(**sizes), seed, std)
    for encoder in ("text_encoder", "fusion_encoder"):
        state[f"{encoder}.lm_head.decoder.weight"] = state[f"{encoder}.roberta.embeddings.word_embeddings.weight"]
        state[f"{encoder}.lm_head.decoder.bias"] = state[f"{encoder}.lm_head.bias"]
    return state


def drawn(shapes: dict, seed: int, std: float) -> dict:
    """Random tensors of {name: (shape, dtype)}; index tables and ids as they must be."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, (shape, dtype) in shapes.items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[1])[None]
        elif name.endswith("relative_position_index"):
            state[name] = relative_position_index(round((shape[0] - 1) ** 0.5))
        elif name == "temp":
            state[name] = torch.tensor(0.09)
        else:
            state[name] = std * torch.randn(shape, generator=g, dtype=dtype)
            if len(shape) == 1 and name.endswith("weight") or "gamma" in name:
                state[name] += 1
    return state


def listing(shapes: dict) -> str:
    """The text that ``LISTING_SHA256`` is of."""
    return "".join(f"{name}\t{shape}\t{str(dtype).removeprefix('torch.')}\n" for name, (shape, dtype) in shapes.items())
