"""Lists the recipes that come with the toolkit, and every component that a recipe can name: its keys with types and defaults,
what it reads, and what it is."""

import inspect
import json

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command, parser as make_parser
from xtoolkit.recipe.problems import tell
from xtoolkit.registry import (
    DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, ConfigError, nearest, nested, schema,
)

KINDS = {"encoders": ENCODER_REGISTRY, "losses": LOSS_REGISTRY, "tasks": TASK_REGISTRY, "datasets": DATASET_REGISTRY,
         "hooks": HOOK_REGISTRY}


def reads(kind: str, cls) -> str:
    """What a component needs of others, in one line."""
    if kind == "encoders":
        from xtoolkit.encoders.base import slots
        named = [s if required else f"{s} (optional)" for s, required in slots(cls).items()]
        heads = f"; heads: {', '.join(cls.HEADS)}" if cls.HEADS else ""
        return f"inputs: {', '.join(named) or 'none'}{heads}"
    if kind == "hooks":
        from xtoolkit.hooks import Hook
        moments = [name for name, method in vars(Hook).items() if callable(method) and getattr(cls, name) is not method]
        return "defines: " + ", ".join(moments)
    if kind == "datasets":
        return "gives: " + ", ".join(f"${f}" for f in sorted(cls.FIELDS))
    keys = schema(cls)
    # A stand-in for every required name shows which keys are references.
    block = {k.name: f"<{k.name}>" if k.required else k.default for k in keys.values()}
    needs = []
    try:
        wanted = cls.needs(block)
    except Exception as e:  # a plugin is anybody's code: the others are listed all the same
        return f"needs: cannot be told: {type(e).__name__}: {tell(e)}"
    for need in wanted:
        extra = [] if need.grad else ["no gradient"]
        extra += [f"runs it on {need.runs:g}x the batch"] if need.runs else []
        extra += [f"its head {need.head}"] if need.head else []
        needs.append(need.ref + (f" ({', '.join(extra)})" if extra else ""))
    heads = cls.HEADS if kind == "tasks" else {}
    needs += [f"the loss <{key}>" + (f" (a type with `{method}`)" if method else "") for key, method in heads.items()]
    return "needs: " + (", ".join(needs) or "nothing")


def row(key, indent: int, width: int) -> str:
    """One key: its type and default, as YAML writes it, in a column ``width`` wide."""
    default = "required" if key.required else f"default {json.dumps(key.default, default=repr)}"
    return f"{'':{indent}}{key.name:<{width - indent}} {key.type_name}; {default}"


def describe(kind: str, name: str, cls) -> str:
    """One component as text."""
    first = inspect.cleandoc(cls.__doc__ or "(no docstring)").split("\n")[0]  # its own, not what it inherits
    keys = []
    for key in schema(cls).values():
        block = nested(key.type)
        keys += [(key, 4), *((inner, 8) for inner in (schema(block).values() if block else ()))]
    width = max([20, *(len(key.name) + indent for key, indent in keys)])
    return "\n".join([f"{name}: {first}", f"    {reads(kind, cls)}", *(row(key, indent, width) for key, indent in keys)])


@command
def main(argv=None) -> int:
    parser = make_parser("list", __doc__)
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"only this kind: {', '.join(('recipes', *KINDS))}")
    parser.add_argument("--plugins", nargs="*", default=[], metavar="P", help="plugins to import too: paths or modules")
    args = parser.parse_args(argv)
    if args.kind in (None, "recipes"):
        names = recipes.runnable()
        width = max([20, *map(len, names)])
        print("RECIPES\n\n" + "\n".join(f"{name:<{width}} {recipes.find(name)}" for name in names) + "\n")
    if args.kind == "recipes":
        return 0
    from xtoolkit.recipe.plugins import import_components, import_plugins

    import_components()
    if problems := import_plugins(args.plugins, "--plugins")[1]:
        raise ConfigError(problems)
    if args.kind not in (None, *KINDS):
        owner = next((kind for kind, registry in KINDS.items() if args.kind in registry.names()), None)
        parser.error(f"`{args.kind}` is no kind" + (f"; it is one of the {owner}: xtoolkit list {owner}" if owner
                                                   else nearest(args.kind, ("recipes", *KINDS))))
    for kind in [args.kind] if args.kind else KINDS:
        print(f"{kind.upper()}\n")
        for name in KINDS[kind].names():
            print(describe(kind, name, KINDS[kind].get(name)) + "\n")
    return 0
