"""The command `xtoolkit`: hands over to the command named."""

import argparse
import importlib
import sys

from xtoolkit.version import VERSION
from xtoolkit.cli.command import command
from xtoolkit.registry import nearest

COMMANDS = {
    "train": "train a recipe and evaluate it; go on with --resume",
    "evaluate": "run a recipe's evaluations on its newest checkpoint",
    "predict": "what a trained model says of a picture and texts, boxes and heat maps drawn",
    "compare": "hold runs against each other: recipes, results, curves",
    "ablate": "run a table of recipes by tasks, over seeds",
    "finetune_all": "fine-tune a pretrained run on every task of a table",
    "plan": "print what a recipe will do: passes, cuts, parameters, GFLOPs",
    "audit_gradients": "how much of each loss reaches each encoder, and which losses conflict",
    "list": "list recipes and components, with keys, types, defaults and needs",
    "prepare": "turn a dataset's official release into shards",
    "show": "draw what the model will see of a stream",
    "convert": "convert weights into the toolkit and out of it",
    "zoo": "write the tables of MODEL_ZOO.md from recipes and recorded results",
    "benchmark": "measure kernels, the training step or the data",
}


@command
def main(argv=None) -> int:
    """Runs ``xtoolkit COMMAND ...``; nothing is imported for a command that is not run."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"xtoolkit.cli.{argv[0]}").main(argv[1:])
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="xtoolkit", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Pretrain, fine-tune and ablate vision-language models.\n\ncommands:\n"
                    + "\n".join(f"  {name:<{width}}{what}" for name, what in COMMANDS.items()),
        epilog="`xtoolkit COMMAND --help` says more.")
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("command", metavar="COMMAND", help="one of these")
    named = parser.parse_args(argv[:1]).command
    parser.error(f"no command `{named}`{nearest(named, COMMANDS)}")
