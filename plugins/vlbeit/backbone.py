"""VLBEiT: the backbone of VL-BEiT, one transformer over texts, pictures and pairs.

Shape letters: B rows, L text tokens, N patches, T tokens of both, D width, M masked tokens.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtoolkit.batch import ImageField, TextField
from xtoolkit.encoders.base import Encoder
from xtoolkit.encoders.patches import ConvStem, PatchEmbed
from xtoolkit.encoders.roberta import TiedHead
from xtoolkit.features import Encoded
from xtoolkit.hints import Count, Dropout, NotNegative, Positive, Range
from xtoolkit.registry import ENCODER_REGISTRY
from xtoolkit.weights.beit import resize_position_table

from .blocks import ALL, EXPERTS, Block, Output
from .positions import RelativePositions

Form = Literal["linear", "mlm"]


@ENCODER_REGISTRY.register
class VLBEiT(Encoder):
    """VL-BEiT's mixture-of-modality-experts transformer: a text, a picture, or a pair as [text; picture].

    Attention is shared; the feed-forward network of each token is the one of its modality. In the last ``vl_layers`` blocks all
    tokens of a pair take a third, the vision-language expert; texts and pictures alone keep theirs there. The summary is
    [T_CLS], the tokenizer's first token, for texts and pairs, and [I_CLS] for pictures. Padding is attended to by nobody.

    YAML: {type: VLBEiT, inputs: {text: $text, image: $image}, width: 768, layers: 12, heads: 12}

    Wire it a second time, `{shares: backbone, inputs: {text: $text}}` and `{shares: backbone, inputs: {image: $image}}`, to have a
    dual encoder. It owns two output layers, each built if a loss reads it, and one for all losses that do: ``lm_logits`` of MLM,
    ``code_logits`` of `{type: MIMCodes, head: encoder}`.

    Args:
        width: channels.
        layers: blocks.
        heads: attention heads; must divide ``width``.
        vocab_size: rows of the word embeddings; a tokenizer may have fewer words, not more. The paper: "64k".
        max_tokens: longest text, its two special tokens included; not in the paper. VLMo's released text stage has 196.
        pad_id: the tokenizer's padding id.
        patch_size: pixels a side of a patch.
        image_size: pixels a side; a multiple of ``patch_size``. Positions are resized where weights of another size are loaded.
        mlp_ratio: hidden width of an expert over ``width``.
        vl_layers: blocks from the top with a vision-language expert. The paper routes "by the modality of input token" and cites
            VLMo's transformer, which has them in 2 of 12; 0: text and image experts alone, the paper's sentence taken by its word.
        experts: false: one feed-forward network for all, the standard transformer of the paper's Table 5.
        expert_norms: a norm of its own before each expert, as VLMo's code; false: one that they share.
        layer_scale: initial value of the per-channel factors on both branches, shared by the modalities, as BEiT and VLMo base;
            null: none. The paper names none, but follows BEiT's initial values.
        relative_positions: a learned bias on attention as well, as VLMo's; the paper lists only the added positions.
        token_types: an embedding of each modality is added, as VLMo; the paper lists none.
        image_summary: what a picture alone is told by, `cls`, [I_CLS], or `mean` of its patches, which ImageNet's classifier reads.
        drop_path: stochastic depth of the last block; grows linearly from 0 at the first.
        eps: of every LayerNorm; BEiT's.
        visual_tokens: how many codes the image tokenizer has that ``code_logits`` tells; BEiTv2's 8192.
        word_head: form of ``lm_logits``: `mlm`, dense, GELU, LayerNorm and the output matrix, as BERT; or `linear`. Not in the paper.
        tied: the output matrix of words is that of their embeddings; false: one of its own. Not in the paper.
        code_head: form of ``code_logits``, likewise; BEiT's is `linear`.
        init_std: of embeddings and linear layers; narrow encoders start better with more.
        stem: channels of convolutions instead of the one linear map of a patch, as BEiTv2's ``stem`` here; null: none.

    Source: VL-BEiT (2206.01127) 2.1 and 2.2; it has no released code. Where it says nothing, BEiT's code (biases of queries and
    values only, truncated normal 0.02, the last linear of each branch divided by sqrt(2 * layer)) and VLMo's (2111.02358).
    """

    HEADS = ("lm_logits", "code_logits")

    def __init__(self, width: Count = 768, layers: Count = 12, heads: Count = 12, vocab_size: Count = 64000,
                 max_tokens: Count = 196, pad_id: Annotated[int, Range(0)] = 1, patch_size: Count = 16, image_size: Count = 224,
                 mlp_ratio: Positive = 4, vl_layers: Annotated[int, Range(0)] = 2, experts: bool = True,
                 expert_norms: bool = True, layer_scale: Positive | None = 0.1, relative_positions: bool = False,
                 token_types: bool = False, image_summary: Literal["cls", "mean"] = "cls", drop_path: Dropout = 0.1,
                 eps: Positive = 1e-6, visual_tokens: Count = 8192, word_head: Form = "mlm", tied: bool = True,
                 code_head: Form = "linear", init_std: NotNegative = 0.02, stem: list[Count] | None = None):
        super().__init__()
        if width % heads:
            raise ValueError(f"VLBEiT: width {width} is not a multiple of heads {heads}")
        if image_size % patch_size:
            raise ValueError(f"VLBEiT: image_size {image_size} is not a multiple of patch_size {patch_size}; nearest: "
                             f"{round(image_size / patch_size) * patch_size}")
        if vl_layers > layers:
            raise ValueError(f"VLBEiT: vl_layers {vl_layers} is more than layers {layers}")
        self.width, self.vocab_size, self.pad_id, self.max_tokens = width, vocab_size, pad_id, max_tokens
        self.patch_size, self.image_size, self.grid = patch_size, image_size, image_size // patch_size
        self.visual_tokens, self.forms, self.tied, self.eps = visual_tokens, {"word": word_head, "code": code_head}, tied, eps
        self.image_summary, self.init_std = image_summary, init_std
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.text_positions = nn.Parameter(torch.empty(max_tokens, width))
        self.patch_embed = ConvStem(width, patch_size, stem) if stem else PatchEmbed(width, patch_size)
        self.cls_token, self.mask_token = nn.Parameter(torch.empty(1, 1, width)), nn.Parameter(torch.empty(1, 1, width))
        self.image_positions = nn.Parameter(torch.empty(1 + self.grid**2, width))
        self.token_types = nn.Parameter(torch.empty(2, width)) if token_types else None
        self.relative_positions = RelativePositions(layers, heads, self.grid, max_tokens) if relative_positions else None
        names = lambda i: (*EXPERTS, *(("pair",) if i >= layers - vl_layers else ())) if experts else (ALL,)
        self.blocks = nn.ModuleList(
            Block(width, heads, int(width * mlp_ratio), names(i), expert_norms, layer_scale, drop_path * i / max(1, layers - 1), eps)
            for i in range(layers))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.lm_head = self.lm_matrix = self.code_head = self.code_matrix = None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights anew, as BEiT does."""
        self.patch_embed.reset_parameters()
        for table in (self.word_embeddings.weight, self.text_positions, self.image_positions, self.cls_token, self.mask_token,
                      *(() if self.token_types is None else (self.token_types,))):
            nn.init.trunc_normal_(table, std=self.init_std)
        for depth, block in enumerate(self.blocks, start=1):
            block.init_weights(self.init_std, depth)

    # ---- its output layers ------------------------------------------------------------------------------------------------
    def build_head(self, name: str) -> None:
        """Builds ``lm_logits`` or ``code_logits``. Raises ValueError for any other name."""
        matrix = lambda rows: nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, self.width), std=0.02))
        if name == "lm_logits":
            self.lm_head = Output(self.width, self.vocab_size, self.forms["word"], self.eps)
            self.lm_matrix = None if self.tied else matrix(self.vocab_size)
        elif name == "code_logits":
            self.code_head = Output(self.width, self.visual_tokens, self.forms["code"], self.eps)
            self.code_matrix = matrix(self.visual_tokens)
        else:
            super().build_head(name)

    @property
    def lm_logits(self) -> TiedHead:
        """Scores of words: (M, D) -> (M, vocab_size); it can also tell their cross-entropy without all the scores."""
        return TiedHead(self.lm_head, self.word_embeddings.weight if self.tied else self.lm_matrix)

    @property
    def code_logits(self) -> TiedHead:
        """Scores of visual tokens: (M, D) -> (M, visual_tokens)."""
        return TiedHead(self.code_head, self.code_matrix)

    # ---- what it says of a batch ------------------------------------------------------------------------------------------
    def forward(self, *, view: str | None, text: TextField | None = None, image: ImageField | None = None) -> Encoded:
        """(B, L, D) of texts, (B, 1 + N, D) of pictures, (B, L + 1 + N, D) of pairs, after the last norm.

        Raises:
            ValueError: neither of both, another size of pictures, a text that is too long or reads from left to right.
        """
        read = {}
        if text is not None:
            read["text"] = self.embed_text(text), text.mask
        if image is not None:
            x = self.embed_image(image)
            read["image"] = x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if not read:
            raise ValueError("VLBEiT reads a text, a picture or both; this batch has neither")
        x, mask = (torch.cat(parts, 1) for parts in zip(*read.values()))
        lengths = {name: part.shape[1] for name, (part, _) in read.items()}
        biases = self.attended(mask, lengths)
        for block, bias in zip(self.blocks, biases):
            x = block(x, bias, lengths)
        x = self.norm(x)
        if "text" not in read and self.image_summary == "mean":
            x = torch.cat([x[:, 1:].mean(1, keepdim=True), x[:, 1:]], 1)
        first = lengths.get("text", 0)
        segments = {"text": slice(0, first)} if text is not None else {}
        return Encoded.of(x, mask, segments | ({"image": slice(first + 1, x.shape[1])} if image is not None else {}))

    def attended(self, mask: Tensor, lengths: dict[str, int]) -> list[Tensor]:
        """What each block's attention may see of tokens with ``mask`` (B, T): bool (B, 1, 1, T), or biases (B, h, T, T)."""
        keys = mask[:, None, None]
        if self.relative_positions is None:
            return [keys] * len(self.blocks)
        return [bias.masked_fill(~keys, -math.inf) for bias in self.relative_positions(lengths)]

    def embed_text(self, text: TextField) -> Tensor:
        """(B, L, D): words and their places."""
        length = text.ids.shape[1]
        if length > self.max_tokens:
            raise ValueError(f"a text of {length} tokens does not fit VLBEiT's {self.max_tokens} positions: lower the stream's "
                             "`max_tokens`, or raise the encoder's")
        if text.attention is not None:
            raise ValueError("VLBEiT attends to all tokens of a text: it has no `@left_to_right`")
        x = self.word_embeddings(text.ids) + self.text_positions[:length]
        return x if self.token_types is None else x + self.token_types[0]

    def embed_image(self, image: ImageField) -> Tensor:
        """(B, 1 + N, D): [I_CLS] and patches, masked ones replaced, and their places."""
        size = tuple(image.pixels.shape[-2:])
        if size != (self.image_size, self.image_size):
            raise ValueError(f"VLBEiT is built for {self.image_size} x {self.image_size} pixels, this batch has {size[0]} x "
                             f"{size[1]}: set `image_size: {size[0]}` on the encoder (loading resizes its positions)")
        x, mask = self.patch_embed(image.pixels, image.patch_mask), image.patch_mask
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.image_positions
        return x if self.token_types is None else x + self.token_types[1]

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with the places of patches resized to this grid: bicubic those that are added, by BEiT's rule the bias."""
        state, name = dict(state), "image_positions"
        if name in state and state[name].shape[0] != self.image_positions.shape[0]:
            cls, patches = state[name][:1], state[name][1:]
            side = math.isqrt(len(patches))
            square = patches.T.reshape(1, -1, side, side).float()
            square = F.interpolate(square, (self.grid, self.grid), mode="bicubic", align_corners=False)
            state[name] = torch.cat([cls, square[0].flatten(1).T.to(cls.dtype)])
        name = "relative_positions.relative_position_bias_table"
        if name in state:
            state[name] = resize_position_table(state[name], self.grid)
        return state
