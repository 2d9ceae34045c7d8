"""Which parts of a recipe published weights are for: found by type and wiring, as a recipe may call its parts as it likes."""

from xtoolkit.graph import Ref
from xtoolkit.registry import ENCODER_REGISTRY, filled
from xtoolkit.weights.report import ConversionError


def types(recipe) -> dict[str, str]:
    """{encoder that the recipe builds: its type}; a second wiring of a module has none of its own and is left out."""
    blocks = recipe.config["encoders"]
    return {name: blocks[name]["type"] for name in recipe.reached if "type" in blocks[name]}


def built(recipe, kind: str) -> list[str]:
    """Names of the encoders of a type that the recipe builds."""
    return [name for name, of in types(recipe).items() if of == kind]


def only(recipe, kind: str) -> str:
    """The name of the one encoder of a type that the recipe builds.

    Raises:
        ConversionError: there is none, or more than one.
    """
    found = built(recipe, kind)
    if not found:
        raise ConversionError(f"{recipe.source.where('encoders')}: this recipe builds no {kind} encoder; use one that does")
    if len(found) > 1:
        raise ConversionError(f"{recipe.source.where('encoders')}: {' and '.join(found)} both are {kind} encoders, and the file "
                              "has one; use a recipe with one")
    return found[0]


def roles(recipe, readers: dict[str, tuple[str, str]], others: dict[str, str], words: dict[str, str]) -> dict[str, str]:
    """{role: prefix of its names in the model}, ``encoders.vision.`` or ``losses.itm.``; roles that nobody plays are absent.

    Args:
        readers: {type of an encoder: (the source that it must read, as ``$image``; its role)}. A Projection of one in
            the role R plays R_proj; one whose output layer a loss reads also plays lm_head.
        others: {type of an encoder or loss: its role}.
        words: {role: what it is}, for the message.

    Raises:
        ConversionError: two parts play one role.
    """
    found: dict[str, list[str]] = {}
    play = lambda role, kind, name: found.setdefault(role, []).append(f"{kind}.{name}.")
    inputs = lambda name: recipe.graph.encoders[name].inputs.values()
    names, kinds = {}, types(recipe)
    for name, kind in kinds.items():
        if kind in readers and readers[kind][0] in inputs(name):
            names[name] = readers[kind][1]
            play(names[name], "encoders", name)
        elif kind in others:
            play(others[kind], "encoders", name)
    for name in (name for name, kind in kinds.items() if kind == "Projection"):
        for source in (source for source in inputs(name) if source in names):
            play(f"{names[source]}_proj", "encoders", name)
    for name in recipe.needs:
        if (kind := recipe.config["losses"][name]["type"]) in others:
            play(others[kind], "losses", name)
    if speaks := [name for name in names if output_layer_read(recipe, name)]:
        found["lm_head"] = found[names[speaks[0]]]
    double = [f"{' and '.join(p.rstrip('.') for p in parts)} both are the {words[role]}" for role, parts in found.items()
              if len(parts) > 1]
    if double:
        raise ConversionError(f"{recipe.source.where()}: " + "; ".join(double) + ": a converted file has one of each; use a "
                              "recipe with one")
    return {role: parts[0] for role, parts in found.items()}


def block_of(recipe, name: str) -> dict:
    """An encoder's block of the recipe, its defaults filled in."""
    block = recipe.config["encoders"][name]
    return filled(ENCODER_REGISTRY.get(block["type"]), block)


def output_layer_read(recipe, name: str) -> bool:
    """Whether a loss reads the encoder's own output layer (``lm_logits``), by whatever wiring."""
    return any(need.head == "lm_logits" and recipe.graph.encoders[Ref.parse(need.ref).name].owner == name
               for needs in recipe.needs.values() for need in needs)
