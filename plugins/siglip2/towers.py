"""The towers of SigLIP: any vision transformer of timm, attention pooling over its patches, and a text's last token.

Shape letters: I images, B rows, N patches, D width, h heads.
"""

from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor, nn

from xtoolkit.batch import ImageField
from xtoolkit.encoders.attention import attention
from xtoolkit.encoders.base import Encoder
from xtoolkit.encoders.beit import MLP
from xtoolkit.encoders.patches import ConvStem
from xtoolkit.features import Encoded, Source
from xtoolkit.hints import Count, Positive
from xtoolkit.registry import ENCODER_REGISTRY
from xtoolkit.weights.files import hub_weights, load_strictly

HEADS = ("head.*", "fc_norm.*", "attn_pool.*")  # of a classifier or of pooling, which stand elsewhere here


@ENCODER_REGISTRY.register
class TimmTower(Encoder):
    """A plain vision transformer of timm, with a mask token; pictures of other sizes than its own get resized positions.

    YAML: {type: TimmTower, inputs: {image: $image}, model: vit_base_patch16_siglip_224, image_size: 224}

    Args:
        model: its name in timm, of the class VisionTransformer.
        width: channels; null: the model's own, as for the next two.
        layers: blocks.
        heads: attention heads.
        patch_size: pixels a side of a patch.
        image_size: pixels a side; a multiple of ``patch_size``.
        summary: `mean` of the patches, or `cls`, the model's class token. MAPHead above it makes another.
        stem: channels of convolutions in the place of the one linear map of a patch, as BEiTv2's ``stem``; null: none.
        init: weights of timm: a file or folder, or a name on the hub with its organisation. null: drawn.

    Source: the docs' example of an encoder (`docs/plugins.md`); SigLIP 2 (2502.14786) 2 for the ViT with learned positions.
    """

    POOLS = "image"

    def __init__(self, model: str = "vit_base_patch16_siglip_224", width: Count | None = None, layers: Count | None = None,
                 heads: Count | None = None, patch_size: Count = 16, image_size: Count = 224,
                 summary: Literal["mean", "cls"] = "mean", stem: list[Count] | None = None, init: str | None = None):
        super().__init__()
        import timm  # seconds: only where one is built

        if model not in (names := timm.list_models(module="vision_transformer")):
            near = "".join(f"; did you mean `{name}`?" for name in get_close_matches(model, names, 1))
            raise ValueError(f"TimmTower: timm has no VisionTransformer `{model}`{near or '; timm.list_models() names them'}")
        if image_size % patch_size:
            raise ValueError(f"TimmTower: image_size {image_size} is not a multiple of patch_size {patch_size}; nearest: "
                             f"{round(image_size / patch_size) * patch_size}")
        own = {"embed_dim": width, "depth": layers, "num_heads": heads}
        self.vit = timm.create_model(model, num_classes=0, global_pool="", img_size=image_size, patch_size=patch_size,
                                     dynamic_img_size=True, **{key: value for key, value in own.items() if value is not None})
        if summary == "cls" and not self.vit.has_class_token:
            raise ValueError(f"TimmTower: `{model}` has no class token: take `summary: mean`, or MAPHead above it")
        self.width, self.image_size, self.patch_size = self.vit.embed_dim, image_size, patch_size
        self.grid, self.summary, self.init = image_size // patch_size, summary, init
        if stem is not None:
            self.vit.patch_embed = ConvStem(self.width, patch_size, stem)
            self.vit.patch_embed.reset_parameters()
            self.vit.patch_embed.grid_size = (self.grid, self.grid)  # of which positions are resized
        self._attentions = [module for module in self.vit.modules() if hasattr(module, "fused_attn")]
        self.mask_token = nn.Parameter(torch.zeros(self.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, *, view: str | None, image: ImageField) -> Encoded:
        """Returns (I, 1 + N, D): the summary, then the patches row by row, after the last norm.

        Raises:
            ValueError: pictures whose side is no multiple of a patch's.
        """
        height, width = image.pixels.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"TimmTower's patches are {self.patch_size} pixels wide, and pictures of {width} x {height} are no "
                             "multiple of that")
        for module in self._attentions:
            module.fused_attn = image.pixels.device.type != "cpu"  # see encoders/attention.py
        rows, columns, mask = height // self.patch_size, width // self.patch_size, image.patch_mask
        embed = self.vit.patch_embed
        x = embed(image.pixels, mask) if isinstance(embed, ConvStem) else embed(image.pixels).flatten(1, 2)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = self.vit.norm_pre(self.vit._pos_embed(x.unflatten(1, (rows, columns))))
        x = self.vit.norm(self.vit.blocks(x))
        patches = x[:, self.vit.num_prefix_tokens:]
        return Encoded.of(torch.cat([x[:, :1] if self.summary == "cls" else patches.mean(1, keepdim=True), patches], 1))

    def load_init(self) -> None:
        """Loads what ``init`` names, positions resized. Raises WeightsError with every name that does not fit."""
        if self.init is not None:
            state = self.fit({f"vit.{name}": tensor for name, tensor in hub_weights(self.init).items()})
            state = {name.removeprefix("vit."): tensor for name, tensor in state.items()}
            load_strictly(self.vit, state, f"init {self.init}", ignore=HEADS)

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with positions resized to this grid, as timm does."""
        from timm.layers import resample_abs_pos_embed

        first = 0 if self.vit.no_embed_class else self.vit.num_prefix_tokens
        if (table := state.get("vit.pos_embed")) is None or table.shape[1] == first + self.grid**2:
            return state
        return state | {"vit.pos_embed": resample_abs_pos_embed(table, [self.grid, self.grid], num_prefix_tokens=first)}


@ENCODER_REGISTRY.register
class MAPHead(Encoder):
    """Attention pooling: the summary is what one learned query finds in the patches, a multi-layer perceptron added to it.

    It gives the patches on as they are. On a region stream the query sees those of the box.

    YAML: {type: MAPHead, inputs: {x: tower}, heads: 12}

    Args:
        heads: attention heads; must divide the width of what it reads.
        mlp_ratio: hidden width of the perceptron over that width.
        init: weights of a timm model with such a head, whose ``attn_pool`` it is, as of TimmTower. null: drawn.

    Source: Zhai et al. 2022 (2106.04560), appendix; names of timm's ``AttentionPoolLatent``. Drawn by Xavier's rule, biases 0.
    """

    def __init__(self, widths: dict, heads: Count = 12, mlp_ratio: Positive = 4, init: str | None = None):
        super().__init__()
        self.width, self.heads, self.init = widths["x"], heads, init
        if self.width % heads:
            raise ValueError(f"MAPHead: width {self.width} is not a multiple of heads {heads}")
        self.latent = nn.Parameter(torch.empty(1, 1, self.width))
        nn.init.trunc_normal_(self.latent, std=self.width**-0.5)
        self.q, self.kv, self.proj = (nn.Linear(self.width, times * self.width) for times in (1, 2, 1))
        self.norm, self.mlp = nn.LayerNorm(self.width, eps=1e-6), MLP(self.width, int(self.width * mlp_ratio))
        for layer in (self.q, self.kv, self.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # what is added to every picture makes all of them alike

    def load_init(self) -> None:
        if self.init is not None:
            state = {n.removeprefix("attn_pool."): t for n, t in hub_weights(self.init).items() if n.startswith("attn_pool.")}
            load_strictly(self, state, f"init {self.init}")

    def forward(self, *, view: str | None, x: Encoded) -> Encoded:
        """Returns B rows of the new summary and the patches of ``x`` (B, 1 + N, D); keys and values are made once a picture."""
        source, index = (x.split()[1], x.parts[0][1]) if len(x.parts) == 1 else x.parts[1]
        pairs = source.memo(self, self.kv)
        pairs = pairs if index is None else pairs.index_select(0, index)
        keys, values = pairs.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.q(self.latent).unflatten(2, (self.heads, -1)).transpose(1, 2).expand(len(x), -1, -1, -1)
        found = attention(query.to(keys.dtype), keys, values, x.mask[:, None, None, 1:])
        found = self.proj(found.transpose(1, 2).flatten(2))
        return Encoded(((Source(found + self.mlp(self.norm(found))), None), (source, index)), x.mask)


@ENCODER_REGISTRY.register
class LastToken(Encoder):
    """A text's last token for its summary: alone, for Projection.

    YAML: {type: LastToken, inputs: {x: text}}

    Source: SigLIP's text tower (2303.15343), in its released code; there texts are padded and the last token may be padding.
    """

    def __init__(self, widths: dict):
        super().__init__()
        self.width = widths["x"]

    def forward(self, *, view: str | None, x: Encoded) -> Encoded:
        """(B, 1, D) of (B, L, D)."""
        last = (x.mask.sum(1) - 1)[:, None, None].expand(-1, -1, self.width)
        return Encoded.of(x.tokens.gather(1, last))
