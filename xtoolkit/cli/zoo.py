"""Writes the tables of MODEL_ZOO.md, and those that other pages take, from recipes, papers' figures and recorded results.

What was counted of a recipe is kept and counted anew once the recipe has changed. All else in the pages is written by hand.
"""

import json
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.cli.command import Once, command, parser as make_parser
from xtoolkit.engine.records import write_text
from xtoolkit.registry import ConfigError

ZOO = "xfm/zoo.yaml"


@command
def main(argv=None) -> int:
    parser = make_parser("zoo", __doc__)
    parser.add_argument("--config", metavar="F", action=Once, help=f"what the zoo holds (default: {ZOO})")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is stale, and name it")
    args = parser.parse_args(argv)
    from xtoolkit.ablation import published
    from xtoolkit.recipe import config
    from xtoolkit.report.zoo import counts, pages, source
    from xtoolkit.report.zoo.tables import Tables

    library = recipes.folder()
    root = library.parent
    if library.name != recipes.CHECKOUT:
        raise ConfigError(f"{library}: an installed package; the zoo writes pages of a checkout: tools/model_zoo.py there")
    zoo, recorded, found = source.read(recipes.find(args.config or ZOO), root,
                                       lambda name: config.load(recipes.find(name), library=str(library)))
    keys = {name: counts.key(one) for name, one in found.items()}
    kept = counts.kept(root / zoo.counts)
    changed = [name for name in keys if kept.get(name, {}).get("key") != keys[name]]
    if args.check and changed:
        print(f"{zoo.counts}: stale, these recipes have changed: {', '.join(changed)}; `xtoolkit zoo` counts them anew")
        return 1
    for name in changed:
        print(f"counting {name}", flush=True)
        kept[name] = counts.count(recipes.read(name, missing_files=False), keys[name])
    kept = {name: kept[name] for name in keys}
    file = lambda name: Path(recipes.find(name)).resolve().relative_to(root.resolve()).as_posix()
    others = {name: published.read(str(root / path)) for name, path in zoo.published.items()}
    wanted = pages.filled(zoo.pages, root, Tables(zoo, recorded, kept, others, file))
    wanted[zoo.counts] = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    stale = [page for page, text in wanted.items()
             if not (root / page).is_file() or (root / page).read_text(encoding="utf-8") != text]
    for page in stale:
        if not args.check:
            write_text(root / page, wanted[page])
        print(f"{page}: stale; `xtoolkit zoo` writes its tables" if args.check else f"{page}: written")
    if not stale:
        print("every table is as recipes and records say")
    return int(bool(stale) and args.check)
