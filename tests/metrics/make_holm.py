"""Makes cases/holm.json: what statsmodels says of families of p-values.

    pip install statsmodels==0.15.0
    python tests/metrics/make_holm.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from statsmodels.stats.multitest import multipletests


def families():
    rng = np.random.default_rng(0)
    yield [0.03]
    yield [0.0, 1.0]
    yield [0.02, 0.02, 0.02]
    yield [0.01, 0.04, 0.03, 0.005]
    yield [2 / 256] * 6
    for size in (2, 3, 6, 6, 6, 12, 40):
        yield rng.random(size).tolist()
        yield (rng.random(size) ** 4).tolist()
        yield (rng.integers(1, 129, size) / 128).tolist()  # as eight seeds have them, with ties


if __name__ == "__main__":
    cases = []
    for p in families():
        rejected, adjusted = multipletests(p, alpha=0.05, method="holm")[:2]
        cases.append({"p": p, "adjusted": adjusted.tolist(), "rejected": rejected.tolist()})
    kept = {"provenance": f"statsmodels {version('statsmodels')}, multipletests(method='holm')", "cases": cases}
    path = Path(__file__).parent / "cases/holm.json"
    path.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    print(f"{path}: {len(cases)} families")
