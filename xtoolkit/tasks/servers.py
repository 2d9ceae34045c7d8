"""What benchmarks' servers ask for: files of predictions in their own formats."""

from xtoolkit.registry import ConfigError

GLUE = ("CoLA", "SST-2", "MRPC", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE")
CLASSES = (*GLUE, "NLVR2", "Hateful-Memes")
# What a name must be, where the server knows classes by name.
NAMED = {"MNLI-m": {"entailment", "neutral", "contradiction"}, "MNLI-mm": {"entailment", "neutral", "contradiction"},
         "QNLI": {"entailment", "not_entailment"}, "RTE": {"entailment", "not_entailment"}, "NLVR2": {"False", "True"}}


def classes(server: str, ids: list, names: list[str], probabilities: list[list[float]]) -> dict[str, str]:
    """{file name: text} of a task of classes.

    GLUE: `CoLA.tsv` ..., `index<tab>prediction` by the release's index. NLVR2: `NLVR2.csv`, `identifier,prediction` a line
    without a heading. Hateful Memes: `Hateful-Memes.csv`, `id,proba,label`, the probability of class 1.

    Args:
        ids: of each row.
        names: of the classes.
        probabilities: of each row, one a class.

    Raises:
        ConfigError: a row without an id, or classes that the server does not know.
    """
    known = NAMED.get(server, {"0", "1"})
    if known != set(names):
        raise ConfigError(f"server: {server} knows the classes {', '.join(sorted(known))}; its data's `classes` are "
                          f"{', '.join(names)}")
    _need_ids(server, ids)
    told = [row.index(max(row)) for row in probabilities]
    if server in GLUE:
        return tsv(server, ids, [names[one] for one in told])
    if server == "NLVR2":
        return {"NLVR2.csv": "".join(f"{one},{names[label]}\n" for one, label in zip(ids, told))}
    rows = (f"{one},{row[1]:.6f},{label}\n" for one, row, label in zip(ids, probabilities, told))
    return {"Hateful-Memes.csv": "id,proba,label\n" + "".join(rows)}


def numbers(server: str, ids: list, values: list[float]) -> dict[str, str]:
    """`STS-B.tsv`: numbers from 0 to 5, three digits behind the point."""
    _need_ids(server, ids)
    return tsv(server, ids, [f"{min(5.0, max(0.0, value)):.3f}" for value in values])


def tsv(server: str, ids: list, told: list[str]) -> dict[str, str]:
    """{file name: text} in GLUE's format: a heading, then a row an index, in the order of the indices."""
    rows = sorted(zip(ids, told), key=lambda row: (len(str(row[0])), str(row[0])))  # by the index, a number
    return {f"{server}.tsv": "index\tprediction\n" + "".join(f"{one}\t{label}\n" for one, label in rows)}


def _need_ids(server: str, ids: list):
    """Raises ConfigError where a row has no id, or two have one."""
    if None in ids:
        raise ConfigError(f"server: {server} asks for the release's index of each row, and row {ids.index(None)} has no `id`")
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ConfigError(f"server: {server} asks for one prediction an index, and the data have {twice} more than once")
