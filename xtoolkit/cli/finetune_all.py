"""Fine-tunes a pretrained run on every task of a table, over several seeds, and writes one table:

    xtoolkit finetune_all --init outputs/xfm_tiny

It is `xtoolkit ablate` with one column, which is there already.
"""

import dataclasses
import os

from xtoolkit.ablation.table import Column, read
from xtoolkit.cli import ablate, recipes
from xtoolkit.cli.command import Once, command, parser as make_parser
from xtoolkit.registry import ConfigError

TABLE = "xfm/finetune/tiny/all.yaml"


@command
def main(argv=None) -> int:
    parser = make_parser("finetune_all", __doc__)
    parser.add_argument("--config", metavar="F", action=Once, help=f"the table (default: {TABLE})")
    parser.add_argument("--init", metavar="RUN", action=Once, help="the pretrained run or weights (default: the table's)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows")
    ablate.add_arguments(parser)
    args = parser.parse_args(argv)
    path = recipes.find(args.config or TABLE)
    table = read(path, str(recipes.folder()))
    name, *others = table.columns
    begun = args.init or table.columns[name].run
    if others or begun is None:
        raise ConfigError(f"{path}: this table has columns to pretrain: `xtoolkit ablate --config {path}`")
    if not os.path.exists(begun):
        raise ConfigError(f"--init: {begun}: no such run or file of weights; `make demo` makes outputs/xfm_tiny")
    begun = dataclasses.replace(table.columns[name], run=begun, recipe=None, set=[], apart=0)
    return ablate.run(dataclasses.replace(table, columns={name: begun}), path, args,
                      [("", row) for row in args.only or ()])
