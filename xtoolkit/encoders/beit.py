"""BEiTv2: the image encoder, a vision transformer with relative position bias and layer scale.

Shape letters: I images, N patches, T = 1 + N tokens, D width, h heads.
"""

import math
import os
import sys
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xtoolkit.batch import ImageField
from xtoolkit.encoders.attention import attention
from xtoolkit.encoders.base import Encoder
from xtoolkit.weights.beit import TABLE, Rule, from_hugging_face, relative_position_index, resize_position_table
from xtoolkit.encoders.patches import ConvStem, PatchEmbed
from xtoolkit.encoders.positions import grid_positions
from xtoolkit.weights.files import WeightsError, load_strictly, read_weights, unwrap
from xtoolkit.features import Encoded
from xtoolkit.weights.hub import fetched, is_path
from xtoolkit.registry import ENCODER_REGISTRY, Count, Dropout, NotNegative, Positive

EPS = 1e-6
# What pretraining and classification checkpoints hold beyond the encoder: output layers, the blocks of BEiTv2's second
# pretraining head, a last norm that mean pooling leaves unused, and index tables that are computed here.
IGNORE = ("head.*", "lm_head.*", "cls_pt_*", "norm.*", "*relative_position_index", "rel_pos_bias.*")


@ENCODER_REGISTRY.register
class BEiTv2(Encoder):
    """BEiT's transformer over image patches, with a mask token.

    YAML: {type: BEiTv2, inputs: {image: $image}, width: 768, layers: 12, heads: 12, patch_size: 16, image_size: 224}

    Parameter names are those of timm's ``Beit`` and of the X-FM release's ``vision_encoder``, so either's weights
    load as they are. Where the image field has a ``patch_mask``, the embeddings of the masked patches are replaced by
    the mask token after the convolution and its bias; the CLS token stays.

    Args:
        width: channels.
        layers: transformer blocks.
        heads: attention heads; must divide ``width``.
        patch_size: pixels a side of a patch.
        image_size: pixels a side; a multiple of ``patch_size``.
        mlp_ratio: hidden width of the MLP over ``width``.
        drop_path: stochastic depth of the last block; grows linearly from 0 at the first.
        layer_scale: initial value of the per-channel factors on each residual branch.
        summary: ``mean`` of the normed patches, or the normed CLS token (``cls``).
        absolute_positions: amplitude of a fixed sine-cosine embedding of each patch's place, added to all patches, masked ones
            too; 0: none, as in BEiTv2. Small models that train for minutes learn places sooner with it.
        stem: channels of convolutions that turn pixels into patches instead of BEiT's one linear map, the last one's before a
            linear map to ``width``: each after the first halves the picture (3 x 3, stride 2), the first, whose squares do not
            overlap, does the rest. [64, 128, 192] at patches of 16: squares of 4, then two halvings. A model that starts from
            nothing tells things apart much sooner with it (Xiao et al. 2106.14881, whose stem is all 3 x 3 and normed by batch;
            here GroupNorm, so that a picture's features are its own). Masked patches are painted in the mean colour first, or
            their neighbours would see them.
        init_std: of the linear layers. 0.02 is made for 768 channels; narrow encoders start better with more.
        resize: how position bias tables of another ``image_size`` are resized when weights are loaded: ``timm``, linear, or
            ``spline``, the bicubic spline of the release (features differ by about 1e-3).
        checkpointing: recompute each block in the backward pass: less memory, a third more time.
        init: weights: a file or folder (safetensors, or torch) in the format of unilm, timm or transformers, or a name that timm
            can download. None: random.

    Attributes:
        grid: patches a side.

    Source: BEiT (2106.08254) section 2 and BEiTv2 (2208.06366) for the blocks; X2-VLM 3.2 and X-FM's released
    ``beit2.py`` for the summary: LayerNorm on every patch, then their mean (timm's own head is mean, then LayerNorm).
    The released code drops the CLS token's last state, as ``mean`` does. Initial values as released: truncated normal
    0.02, the last linear of each branch divided by sqrt(2 * layer).
    """

    HUB = "timm"
    POOLS = "image"

    def __init__(self, width: Count = 768, layers: Count = 12, heads: Count = 12, patch_size: Count = 16, image_size: Count = 224,
                 mlp_ratio: Positive = 4, drop_path: Dropout = 0.1, layer_scale: NotNegative = 0.1,
                 summary: Literal["mean", "cls"] = "mean", absolute_positions: NotNegative = 0, stem: list[Count] | None = None,
                 init_std: NotNegative = 0.02, resize: Rule = "timm", checkpointing: bool = False, init: str | None = None):
        super().__init__()
        if width % heads:
            raise ValueError(f"BEiTv2: width {width} is not a multiple of heads {heads}")
        if image_size % patch_size:
            raise ValueError(f"BEiTv2: image_size {image_size} is not a multiple of patch_size {patch_size}; nearest: "
                             f"{round(image_size / patch_size) * patch_size}")
        self.width, self.patch_size, self.image_size = width, patch_size, image_size
        self.grid = image_size // patch_size
        self.layer_scale, self.summary, self.checkpointing, self.init = layer_scale, summary, checkpointing, init
        self.absolute_positions, self.init_std, self.resize = absolute_positions, init_std, resize
        self.patch_embed = ConvStem(width, patch_size, stem) if stem else PatchEmbed(width, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        rates = [drop_path * i / max(1, layers - 1) for i in range(layers)]
        self.blocks = nn.ModuleList(Block(width, heads, int(width * mlp_ratio), self.grid, rate) for rate in rates)
        self.fc_norm = nn.LayerNorm(width, eps=EPS)
        self.register_buffer("position_index", relative_position_index(self.grid).flatten(), persistent=False)
        if absolute_positions:
            self.register_buffer("positions", absolute_positions * grid_positions(self.grid, width), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights anew, as the release does, and fills the index table (after ``to_empty`` it is needed)."""
        self.position_index.copy_(relative_position_index(self.grid).flatten())
        if self.absolute_positions:
            self.positions.copy_(self.absolute_positions * grid_positions(self.grid, self.width))
        self.patch_embed.reset_parameters()
        self.fc_norm.reset_parameters()
        for token in (self.cls_token, self.mask_token):
            nn.init.trunc_normal_(token, std=0.02)
        for depth, block in enumerate(self.blocks, start=1):
            block.init_weights(self.layer_scale, self.init_std, branch_scale=math.sqrt(2 * depth))

    def forward(self, *, view: str | None, image: ImageField) -> Encoded:
        """Returns (I, 1 + N, D): the summary token, then the patches row by row, all after the last norm."""
        height, width = image.pixels.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(f"BEiTv2 is built for {self.image_size} x {self.image_size} pixels, this batch has "
                             f"{height} x {width}: set `image_size: {height}` on the encoder (loading resizes the "
                             "position bias)")
        mask, patches = image.patch_mask, (image.pixels.shape[0], self.grid ** 2)
        if mask is not None and mask.shape != patches:
            raise ValueError(f"patch_mask is {tuple(mask.shape)}, but patches are {patches}")
        x = self.patch_embed(image.pixels, mask)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token, x)
        if self.absolute_positions:
            x = x + self.positions
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, self.position_index, use_reentrant=False)
            else:
                x = block(x, self.position_index)
        if self.summary == "cls":
            return Encoded.of(self.fc_norm(x))
        patches = self.fc_norm(x[:, 1:])
        return Encoded.of(torch.cat([patches.mean(1, keepdim=True), patches], 1))

    def load_init(self) -> None:
        """Loads the weights that ``init`` names, if it does; the model calls this once, after construction.

        Raises:
            WeightsError: every name that does not fit; or where to put weights that cannot be downloaded.
        """
        if self.init is None:
            return
        state = read_weights(self.init) if is_path(self.init) else _download(self.init)
        state, _ = from_hugging_face(unwrap(state, f"init {self.init}"))
        drawn = load_strictly(self, self.fit(state), f"init {self.init}", ignore=IGNORE,
                              may_miss=("mask_token", *(("fc_norm.*",) if "norm.weight" in state else ())))
        if drawn and os.environ.get("RANK", "0") == "0":
            print(f"init {self.init}: it has no {', '.join(drawn)}: drawn anew", file=sys.stderr)

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with a shared position bias table copied to each block, and tables resized to this grid."""
        state = dict(state)
        shared = state.pop(f"rel_pos_bias.{TABLE}", None)
        if shared is not None:
            state.update({f"blocks.{i}.attn.{TABLE}": shared for i in range(len(self.blocks))})
        for name in [n for n in state if n.endswith(TABLE)]:
            state[name] = resize_position_table(state[name], self.grid, self.resize)
        return state


class Attention(nn.Module):
    """Self-attention with a learned bias for each offset between two patches; keys have no bias of their own."""

    def __init__(self, width, heads, grid):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3, heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x, index):
        rows, tokens, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(rows, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Selecting columns of the transposed table gives (h, T * T) as attention wants it: five times faster, forward
        # and backward, than indexing its rows and permuting. In float32, so that the backward sums are too.
        position = self.relative_position_bias_table.t().index_select(1, index).view(1, self.heads, tokens, tokens)
        x = attention(q, k, v, position)
        return self.proj(x.transpose(1, 2).reshape(rows, tokens, width))


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm block: attention and MLP, each scaled per channel and dropped per image at rate ``drop_path``."""

    def __init__(self, width, heads, hidden, grid, drop_path):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, grid)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, hidden)
        self.gamma_1 = nn.Parameter(torch.empty(width))
        self.gamma_2 = nn.Parameter(torch.empty(width))

    def init_weights(self, layer_scale, std, branch_scale):
        """Draws all weights anew; the linear layers that end a branch are divided by ``branch_scale``."""
        for gamma in (self.gamma_1, self.gamma_2):
            nn.init.constant_(gamma, layer_scale)
        for norm in (self.norm1, self.norm2):
            norm.reset_parameters()
        for zero in (self.attn.q_bias, self.attn.v_bias, self.attn.relative_position_bias_table, self.attn.proj.bias,
                     self.mlp.fc1.bias, self.mlp.fc2.bias):
            nn.init.zeros_(zero)
        for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.trunc_normal_(linear.weight, std=std)
        self.attn.proj.weight.div_(branch_scale)
        self.mlp.fc2.weight.div_(branch_scale)

    def forward(self, x, index):
        x = x + self._drop(self.gamma_1 * self.attn(self.norm1(x), index))
        return x + self._drop(self.gamma_2 * self.mlp(self.norm2(x)))

    def _drop(self, branch):
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep).div_(keep)


def _download(name):
    """The tensors of a model on the hub, or of one that timm names, from the hub's cache where they are there."""
    repository = name.removeprefix("hf-hub:")
    try:
        if "/" not in repository:
            import timm
            repository = timm.models.get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id
        return read_weights(fetched(repository))
    except RuntimeError as error:
        raise WeightsError(f"init `{name}` is neither a file or folder here, a name on the hub (ORGANISATION/NAME) nor a model "
                           f"that timm knows ({error}); `python -c \"import timm; print(timm.list_pretrained('beit*'))\"` lists "
                           "its names") from error
    except OSError as error:
        raise WeightsError(f"init `{name}` cannot be downloaded ({type(error).__name__}: {error}); on a machine with "
                           f"access run `hf download {repository} model.safetensors --local-dir DIR`, copy DIR here, "
                           "and set `init: DIR/model.safetensors`") from error
