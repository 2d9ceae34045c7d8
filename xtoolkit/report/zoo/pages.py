"""Pages with tables between two comments, `<!-- zoo: NAME -->` and `<!-- /zoo -->`: all else in them is written by hand."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from xtoolkit.registry import ConfigError, nearest
from xtoolkit.report.zoo.tables import Tables

BEGIN, END = "<!-- zoo: ", "<!-- /zoo -->"
PLACE = re.compile(rf"^({BEGIN}(.+) -->\n)((?:.*\n)*?)({END})$", re.M)
LINES = re.compile(rf"^(?:{BEGIN}.*|{END})$", re.M)


def filled(pages: list[str], root: Path, tables: Tables) -> dict[str, str]:
    """{page: as it should be}.

    Raises:
        ConfigError: a page that is not there, a comment that names no table or has no end, a table that no page has.
    """
    found, problems, placed = {}, [], set()
    for page in pages:
        if not (root / page).is_file():
            problems.append(f"{root / page}: no such page; the zoo fills the pages of a checkout")
            continue
        text = (root / page).read_text(encoding="utf-8")
        places = list(PLACE.finditer(text))
        placed |= {place[2] for place in places}
        line = lambda place: text.count("\n", 0, place.start()) + 1
        problems += [f"{page}:{line(place)}: no table `{place[2]}`{nearest(place[2], tables.named)}"
                     for place in places if place[2] not in tables.named]
        if 2 * len(places) != len(LINES.findall(text)):
            problems.append(f"{page}: each `{BEGIN}NAME -->` on a line of its own needs its `{END}` below, before the next")
        if not problems:
            link = _linking(page)
            found[page] = PLACE.sub(lambda place: place[1] + tables.named[place[2]](link).strip("\n") + "\n" + place[4], text)
    missing = [f"no page has the table `{name}`: put `{BEGIN}{name} -->` and `{END}` where it belongs"
               for name in tables.due if name not in placed]
    if problems or missing:
        raise ConfigError(problems or missing)
    return found


def _linking(page: str) -> Callable[[str], str]:
    """Gives the way from a page to a file, both below one folder."""
    return lambda file: os.path.relpath(file, os.path.dirname(page) or ".")
