"""Which published format a set of names is of, so that a wrong file is answered with the right command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        what: in words.
        signs: alternatives; each lists prefixes of names, blanks between them, that such weights all have.
        source: what `xtoolkit convert --from` calls it; empty: it reads no such files.
        encoder: the type of the encoder that takes such a file as it is, in its own `init`; empty: none does.
    """

    what: str
    signs: tuple[str, ...]
    source: str = ""
    encoder: str = ""

    def advice(self, file="FILE") -> str:
        """What to do with such a file, where a whole model was asked for."""
        if self == OURS:
            return "give it to a recipe's top-level `init`, or convert it with --to"
        if not self.source:
            return "nothing here reads it"
        convert = f"xtoolkit convert --config F --from {self.source} {file} OUT.safetensors"
        return f"convert it: {convert}" + (f"; or name it as the `init` of the {self.encoder} encoder" if self.encoder else "")


OURS = Format("a model of this toolkit", ("encoders.", "losses."))
# In the order in which they are tried: the first whose signs are there counts.
FORMATS = [
    OURS,
    Format("CLIP", ("vision_model.", "visual.transformer.", "text_model.encoder.layers.")),
    Format("BEiT as Hugging Face's transformers store it",
           ("beit.", "encoder.layer.0.attention.attention. encoder.layer.0.lambda_1",
            "layers.0.attention.q_proj. layers.0.lambda_1"),
           "beitv2", "BEiTv2"),
    Format("BEiT as unilm or timm store it", tuple(f"blocks.0. patch_embed {sign}" for sign in (
        "blocks.0.gamma_1", "blocks.0.attn.relative_position", "rel_pos_bias.")), "beitv2", "BEiTv2"),
    Format("a vision transformer that is no BEiT: no layer scale, no relative positions",
           ("blocks.0. patch_embed", "embeddings.patch_embeddings.")),
    Format("BERT as Hugging Face stores it", ("bert.", "embeddings.token_type_embeddings.weight cls.predictions")),
    Format("RoBERTa as Hugging Face stores it", ("roberta.", "embeddings.word_embeddings encoder.layer.0."),
           "roberta", "RoBERTa"),
]


def add(format: Format) -> None:
    """Makes a project's own format known; it is tried after the others."""
    if format not in FORMATS:
        FORMATS.append(format)


def recognise(names) -> Format | None:
    """The format whose names these are, judged by those that tell formats apart; None: none that is known."""
    names = list(names)
    has = lambda prefix: any(name.startswith(prefix) for name in names)
    return next((f for f in FORMATS if any(all(map(has, sign.split())) for sign in f.signs)), None)
