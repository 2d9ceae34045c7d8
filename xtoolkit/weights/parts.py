"""Which encoder of a recipe a published encoder's weights are for: found by type, as a recipe may call its parts as it likes."""

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


def block_of(recipe, name: str) -> dict:
    """An encoder's block of the recipe, its defaults filled in."""
    block = recipe.config["encoders"][name]
    return filled(ENCODER_REGISTRY.get(block["type"]), block)


def output_layer_read(recipe, name: str) -> bool:
    """Whether a loss reads the encoder's own output layer (``lm_logits``), by whatever wiring."""
    return any(need.head == "lm_logits" and recipe.graph.encoders[Ref.parse(need.ref).name].owner == name
               for needs in recipe.needs.values() for need in needs)
