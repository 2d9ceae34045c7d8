"""Measures one job for a table's forecast, in a process that imports what the job's would: `python -m xtoolkit.cli.measure JSON`.

``xtoolkit.ablation.forecast`` writes the JSON: ``config``, ``overrides``; ``init``, ``workers`` and ``began`` of ``measure``; and
``into``, the file of what is found.
"""

import json
import sys
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command


@command
def main(argv=None) -> int:
    told = json.loads((sys.argv[1:] if argv is None else argv)[0])
    recipe = recipes.read(told["config"], told["overrides"], missing_files=told["init"], purpose="resume")

    from xtoolkit.ablation.measure import measure
    from xtoolkit.cli.releases import releases
    from xtoolkit.engine.records import write_json

    releases()
    write_json(Path(told["into"]), measure(recipe, told["init"], told["workers"], told["began"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
