"""Each plugin's README tells its lines, all in one way, so that systems can be compared."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APART = ("release.py", "video.py")  # converters and video are told apart
SYSTEMS = sorted(path.parent for path in (ROOT / "plugins").glob("*/README.md"))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def code(path: Path) -> int:
    """Lines that are neither blank, nor comments alone, nor docstrings."""
    text = path.read_text(encoding="utf-8")
    said = {n for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for n in range(node.lineno, node.end_lineno + 1)}
    return sum(bool(line.strip()) and line.strip()[0] != "#" and n not in said for n, line in enumerate(text.splitlines(), 1))


@pytest.mark.parametrize("folder", SYSTEMS, ids=lambda folder: folder.name)
def test_the_readme_tells_its_lines(folder):
    page = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    told = [int(n) for n in re.search(r"Lines: (\d+) of Python, (\d+) of them code", page).groups()]
    ours = [path for path in folder.glob("*.py") if path.name not in APART]
    assert told == pytest.approx([sum(map(lines, ours)), sum(map(code, ours))], rel=0.03), f"{folder.name}: tell them anew"
    for name in APART:
        assert not (folder / name).exists() or f"({lines(folder / name)})" in page, name
    recipes = re.findall(r"(\w+\.yaml) (\d+)\b", page[page.index("Of YAML: "):])
    assert recipes and all(lines(ROOT / "projects/xfm/baselines" / name) == int(n) for name, n in recipes)


def test_lines_of_code_are_counted_as_they_are(tmp_path):
    (tmp_path / "one.py").write_text('"""Of a file.\n\nTwo."""\n\n# a comment\nx = 1  # beside\n\n\ndef f():\n    """What."""\n    return "not a docstring"\n')
    assert (lines(tmp_path / "one.py"), code(tmp_path / "one.py")) == (11, 3)
