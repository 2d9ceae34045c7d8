"""tools/benchmark.py linear_cross_entropy and attention: they run small on a CPU, and notice a way that is wrong."""

import importlib

import pytest

from xtoolkit.cli import benchmark
from xtoolkit.cli.benchmarks import attention

kernel = importlib.import_module("xtoolkit.kernels.linear_cross_entropy")


@pytest.fixture(autouse=True)
def constants_stay(monkeypatch):
    for name in ("WORDS", "PLAIN_BYTES"):
        monkeypatch.setattr(kernel, name, getattr(kernel, name))


def table(page):
    """(the head, the other rows) of a page's table, as lists of cells."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows[0], rows[2:]


def output_layer(page):
    return benchmark.main(["linear_cross_entropy", "--device", "cpu", "--sizes", "64x3000", "--width", "16",
                           "--repeats", "1", "--words", "256", "--dtypes", "fp32", "--markdown", str(page)])


def test_output_layer(tmp_path):
    assert output_layer(tmp_path / "page.md") == 0
    head, rows = table(tmp_path / "page.md")
    found = {row[2]: dict(zip(head[3:], row[3:])) for row in rows}
    assert {"plain", "parts of 256"} <= found.keys() and float(found["plain"]["of plain"]) == 1
    assert float(found["plain"]["peak MB"]) > float(found["parts of 256"]["peak MB"])
    assert float(found["parts of 256"]["held MB"]) == 0
    assert all(float(r["ms"]) > 0 and float(r["error of loss"]) < 1e-5 for r in found.values())


def test_a_wrong_output_layer_is_an_error(tmp_path, monkeypatch):
    right = kernel.linear_cross_entropy
    monkeypatch.setattr(kernel, "linear_cross_entropy", lambda *a: 1.01 * right(*a))
    assert output_layer(tmp_path / "page.md") == 1


def position_bias(page):
    return benchmark.main(["attention", "--device", "cpu", "--rows", "2", "--heads", "2", "--grid", "3",
                           "--head-width", "8", "--repeats", "1", "--dtypes", "fp32", "--markdown", str(page)])


def test_attention(tmp_path):
    assert position_bias(tmp_path / "page.md") == 0
    _, rows = table(tmp_path / "page.md")
    found = {row[1]: row[2:] for row in rows}
    assert float(found["SDPA"][0]) > 0 and all(float(e) < 1e-5 for e in found["SDPA"][3:])
    # FlexAttention gives no gradient of queries on a CPU: no time, but its output and the table's gradient are right.
    for form in ("flex, eager, table", "flex, eager, bias matrix"):
        assert "does not support backward on CPU" in found[form][0]
        assert found[form][4] == "" and float(found[form][3]) < 1e-5 and float(found[form][5]) < 1e-5
    assert (tmp_path / "page.md").read_text().endswith("Rows of a GPU: unmeasured.\n")


def test_a_wrong_attention_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "sdpa", lambda q, k, v, *rest: attention.written_out(q, k, 1.01 * v, *rest))
    assert position_bias(tmp_path / "page.md") == 1
