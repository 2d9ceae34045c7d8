"""Which published format a set of names is of, so that a wrong file is answered with the right command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        what: in words.
        source: what `tools/convert_checkpoint.py --from` calls it; empty: it reads no such files.
        encoder: the type of the encoder that takes such a file as it is, in its own `init`; empty: none does.
    """

    what: str
    source: str = ""
    encoder: str = ""

    def advice(self, file="FILE") -> str:
        """What to do with such a file, where a whole model was asked for."""
        if self.source == "xtoolkit":
            return "give it to a recipe's top-level `init`, or convert it with --to"
        if not self.source:
            return "nothing here reads it"
        convert = f"python tools/convert_checkpoint.py --config F --from {self.source} {file} OUT.safetensors"
        return f"convert it: {convert}" + (f"; or name it as the `init` of the {self.encoder} encoder" if self.encoder else "")


OURS = Format("a model of this toolkit", "xtoolkit")
XFM = Format("the X-FM release", "xfm")
X2VLM = Format("the X2-VLM release")
BEIT = Format("BEiT as unilm or timm store it", "beitv2", "BEiTv2")
ROBERTA = Format("RoBERTa as Hugging Face stores it", "roberta", "RoBERTa")
BERT = Format("BERT as Hugging Face stores it")
HF_BEIT = Format("BEiT as Hugging Face's transformers store it", "beitv2", "BEiTv2")
CLIP = Format("CLIP")
VIT = Format("a vision transformer that is no BEiT: no layer scale, no relative positions")


def recognise(names) -> Format | None:
    """The format whose names these are, judged by those that tell formats apart; None: none that is known."""
    names = set(names)
    some = lambda *prefixes: any(n.startswith(prefixes) for n in names)
    if some("encoders.", "losses."):
        return OURS
    if some("text_encoder.bert."):
        return X2VLM
    if some("vision_encoder.", "text_encoder.", "fusion_encoder."):
        return XFM
    if some("vision_model.", "visual.transformer.", "text_model."):
        return CLIP
    if some("beit.", "encoder.layer.0.attention.attention."):
        return HF_BEIT
    if some("blocks.0.") and some("patch_embed."):
        return BEIT if some("blocks.0.gamma_1", "blocks.0.attn.relative_position", "rel_pos_bias.") else VIT
    if some("bert.") or "embeddings.token_type_embeddings.weight" in names and some("cls.predictions"):
        return BERT
    if some("roberta.") or some("embeddings.word_embeddings") and some("encoder.layer.0."):
        return ROBERTA
    return None
