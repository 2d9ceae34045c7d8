"""Which part of a recipe plays which role of X-FM, found from types and wiring: a recipe may call its parts as it likes."""

from xtoolkit.weights.report import ConversionError
from xtoolkit.graph import Ref
from xtoolkit.registry import ENCODER_REGISTRY, schema

# What each role is, for messages.
ROLES = {
    "vision": "BEiTv2 encoder of $image",
    "text": "RoBERTa encoder of $text",
    "lm_head": "loss that reads the text encoder's output layer (MLM)",
    "fusion": "CrossAttention encoder",
    "vision_proj": "Projection of the image encoder",
    "text_proj": "Projection of the text encoder",
    "sim": "Similarity encoder",
    "itm": "ITM loss",
    "imlm": "IMLM loss",
    "bbp": "BBP loss",
}


def roles(recipe) -> dict[str, str]:
    """{role: prefix of its names in the model}, ``encoders.vision.`` or ``losses.itm.``; roles that nobody plays are absent.

    Raises:
        ConversionError: two parts play one role.
    """
    found: dict[str, list[str]] = {}
    config = recipe.config

    def play(role, kind, name):
        found.setdefault(role, []).append(f"{kind}.{name}.")

    plain = {"CrossAttention": "fusion", "Similarity": "sim", "ITM": "itm", "IMLM": "imlm", "BBP": "bbp"}
    readers = {"BEiTv2": ("$image", "vision"), "RoBERTa": ("$text", "text")}
    names = {}
    for name in recipe.reached:
        kind, sources = config["encoders"][name]["type"], recipe.graph.encoders[name].inputs.values()
        if kind in readers and readers[kind][0] in sources:
            play(readers[kind][1], "encoders", name)
            names[name] = readers[kind][1]
        elif kind in plain:
            play(plain[kind], "encoders", name)
    for name in recipe.reached:
        if config["encoders"][name]["type"] == "Projection":
            for source in recipe.graph.encoders[name].inputs.values():
                if source in names:
                    play(f"{names[source]}_proj", "encoders", name)
    for name, needs in recipe.needs.items():
        if config["losses"][name]["type"] in plain:
            play(plain[config["losses"][name]["type"]], "losses", name)
        if any(n.head == "lm_logits" and names.get(Ref.parse(n.ref).name) == "text" for n in needs):
            found["lm_head"] = found["text"]
    double = [f"{' and '.join(p.rstrip('.') for p in parts)} both are the {ROLES[role]}" for role, parts in found.items()
              if len(parts) > 1]
    if double:
        raise ConversionError(f"{recipe.source.where()}: " + "; ".join(double) + ": a converted file has one of each; use a "
                              "recipe with one")
    return {role: parts[0] for role, parts in found.items()}


def part(recipe, role: str) -> dict:
    """The block of the encoder that plays ``role``, its defaults filled in.

    Raises:
        ConversionError: nobody plays it.
    """
    found = roles(recipe)
    if role not in found:
        raise ConversionError(f"{recipe.source.where('encoders')}: this recipe builds no {ROLES[role]}; use one that does")
    block = recipe.config["encoders"][found[role].split(".")[1]]
    keys = schema(ENCODER_REGISTRY.get(block["type"]))
    return {k.name: k.default for k in keys.values()} | {k: v for k, v in block.items() if v is not None}
