"""Whether tables in LaTeX are well-formed, without LaTeX."""

import re


def columns_of(tex: str) -> list[int]:
    """How many columns each line of each tabular has; fails where one is not well-formed."""
    found = []
    for shape, inside in re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", tex, re.S):
        lines = [line for line in inside.splitlines() if line not in (r"\toprule", r"\midrule", r"\bottomrule")]
        assert inside.startswith("\\toprule\n") and inside.endswith("\\bottomrule\n") and lines
        for line in lines:
            assert line.endswith(r" \\") and not line.startswith(("[", "*"))
            plain = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|dag|ddag|scriptsize|textbf|pm|\$|[&%#_{}])", "", line[:-3])
            assert not re.search(r"[%#_^~†±\\]", plain), line
            depth = 0
            for one in plain:
                depth += {"{": 1, "}": -1}.get(one, 0)
                assert depth >= 0
            assert depth == 0
            assert plain.count("&") == len(shape) - 1, line
            found.append(len(shape))
    assert tex.count("\\begin{") == tex.count("\\end{") == len(re.findall(r"\\begin\{tabular\}", tex))
    return found
