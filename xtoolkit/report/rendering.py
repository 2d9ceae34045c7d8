"""Pages from the templates in this folder: one self-contained file each, everything that is not a template escaped."""

import functools
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from xtoolkit.report.charts import HEIGHT, LEFT, RIGHT, WIDTH
from xtoolkit.report.figures import heat, patches, reading, rectangle, source


@functools.cache
def environment() -> Environment:
    """The templates. What they are given is escaped, and a name that they are not given is an error."""
    made = Environment(loader=PackageLoader("xtoolkit.report"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.globals |= {"plot": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT}}
    made.filters |= {"source": source, "rectangle": rectangle, "patches": patches, "heat": heat, "reading": reading}
    return made


def render(template: str, **values) -> str:
    """A page: ``templates/<template>`` with the values that it names."""
    return environment().get_template(template).render(**values)


def write(path: Path, page: str) -> Path:
    """Writes a page whole, or not at all. Returns its path."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path
