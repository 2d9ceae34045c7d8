"""What null removes from a configuration, and null that removes nothing."""

from xtoolkit.registry import nearest


def removes(path) -> bool:
    """Whether null at this path removes an entry (elsewhere null is a value, where the key's type allows it)."""
    match path:
        case (_,) | ("encoders" | "losses" | "streams" | "evaluate" | "hooks" | "stop_gradient", _):
            return True
        case ("encoders", _, "inputs", _) | ("streams", _, "losses", _) | ("optim", "lr_mult" | "layer_decay", _):
            return True
        case ("schedule", "every" | "sample", _) | (*_, "sources", _):
            return True
        case ("columns" | "rows" | "starts" | "sets" | "controls" | "contrasts", _):  # of a table
            return True
    return False


def absent(base: dict, over: dict) -> dict[tuple, str]:
    """{path of a null in ``over`` that is to remove what is not in ``base``: ``nearest`` of what is}, before one is laid on the
    other."""
    found = {}

    def visit(known, block, path):
        for key, value in block.items() if isinstance(known, dict) else ():  # else misshapen: left to the check
            here = (*path, key)
            if isinstance(value, dict):
                visit({} if known.get(key) is None else known[key], value, here)
            elif value is None and removes(here) and key not in known:
                found[here] = nearest(str(key), known)
    visit(base, over, ())
    return found


def strip(config) -> None:
    """Removes the entries that a structural null took out, and what they leave empty."""
    def inner(value, path):
        for key in list(value):
            here = path + (key,)
            if value[key] is None and removes(here):
                del value[key]
            elif isinstance(value[key], dict):
                inner(value[key], here)
    inner(config.data, ())
    stops = config.data.get("stop_gradient")
    for edge in [e for e, names in (stops if isinstance(stops, dict) else {}).items() if names == []]:
        del stops[edge]
