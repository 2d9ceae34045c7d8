"""The report of a run made up here: well-formed, self-contained, escaped, and with the figures of its files."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from xtoolkit.engine.figures import jpeg
from xtoolkit.report import charts, write_report
from xtoolkit.report.figures import Figure, reading, source
from xtoolkit.report.page import duration
from xtoolkit.report.tables import aligned, format_tables, result_tables
from xtoolkit.tasks import BoxAccuracy, Retrieval, Task

CONFIG = """\
tokenizer: sample://picturebook/tokenizer
encoders:
  vision: {type: BEiTv2, inputs: {image: $image}, width: 192}
  text: {type: RoBERTa, inputs: {text: $text}, width: 192}
  fusion: {type: CrossAttention, inputs: {text: text, image: vision}, layers: 4}
losses:
  mlm: {type: MLM, feature: text@mask_text}
  itc: {type: ITC, sim: sim}
  bbp: {type: BBP, feature: fusion@whole}
stop_gradient: {text -> fusion: [bbp]}
streams:
  text: {batch_size: 64, losses: {mlm: 1}, data: {type: Text}}
  pairs: {batch_size: 64, losses: {itc: 1}, data: {type: Pairs}}
  region: {batch_size: 1024, losses: {itc: 1, bbp: 1}, data: {type: Regions}}
evaluate:
  retrieval: {type: Retrieval}
  testA: {type: BoxAccuracy}
optim: {lr: 1e-4}
train: {steps: 400, output: out}
"""
RECALLS = {"t2i_r1": 11.4, "t2i_r5": 34.6, "t2i_r10": 46.2, "i2t_r1": 18.4, "i2t_r5": 52.4, "i2t_r10": 71.6,
           "r_mean": 39.1}
EVIL = '<script>alert("x")</script> & "co" http://evil.example'


def photograph(seed: int, side: int = 48) -> torch.Tensor:
    """(3, side, side) uint8, a smooth picture, so that JPEG keeps it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    waves = torch.stack([torch.sin(3 * x + seed), torch.cos(4 * y + seed), torch.sin(2 * (x + y) - seed)])
    return (127.5 + 63 * waves).to(torch.uint8)


def coded(seed: int) -> str:
    """A smooth picture as a record has it."""
    return jpeg(photograph(seed))


def record(table, headlines, metrics, floor, figures):
    return {"step": 400, "time": "2026-11-22T01:08:00+00:00", "metrics": metrics, "floor": floor, "table": table,
            "headlines": headlines, "figures": figures}


def fake_run(folder, caption="a brown camel on the left", lines=40):
    """A folder as a run leaves it."""
    (folder / "evaluations").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    with open(folder / "metrics.jsonl", "w") as f:
        for i in range(1, lines + 1):
            decay = math.exp(-i / 12)
            line = {"step": 10 * i, "loss": 9 * decay + 2 + .3 * math.sin(i * 7), "itc": 4 * decay,
                    "text.mlm": 8 * decay + 1, "pairs.itc": 4 * decay + .2 * math.sin(i * 5), "region.itc": 5 * decay,
                    "region.bbp": 3 * decay + .4, "region.bbp.l1": 2 * decay, "region.bbp.giou": decay,
                    "norm": 10 ** (2 * decay), "norm.vision": 3 * decay + .1, "norm.text": 40 * decay + .1,
                    "lr": 1e-4 * (1 - i / lines), "samples_per_s": 180 + 9 * math.sin(i),
                    "data_share": .02, "memory_gb": 1.5, "seconds": 12.0 * i}
            if i % 20 == 0:
                line |= {f"retrieval.dual.{k}": v * i / 40 for k, v in RECALLS.items()}
            f.write(json.dumps(line) + "\n")
        f.write('{"step": 401, "lo')
    matched = {k: v + 3 for k, v in RECALLS.items()}
    both = {f"dual.{k}": v for k, v in RECALLS.items()} | {f"matched.{k}": v for k, v in matched.items()}
    chance = {"t2i_r1": .4, "t2i_r5": 2.0, "t2i_r10": 4.0, "i2t_r1": .4, "i2t_r5": 2.0, "i2t_r10": 3.9, "r_mean": 2.1}
    ranked = [{"image": coded(i), "right": i == 2} for i in range(5)]
    floor = {f"{w}.{k}": v for w in ("dual", "matched") for k, v in chance.items()}
    evaluations = {
        "retrieval": record(Retrieval().table(both, floor), Retrieval.HEADLINES, both, floor, [
            {"title": f"“{caption}”", "text": "right picture at place 3", "items": ranked},
            {"title": "“three lemons”", "text": "right picture at place 17",
             "items": [*({"image": coded(i), "right": False} for i in range(5)), {"image": coded(5), "apart": True}]}]),
        "testA": record(BoxAccuracy().table({"accuracy": 41.3, "mean_iou": .388}, {"accuracy": 36.5, "mean_iou": .341}),
                        BoxAccuracy.HEADLINES, {"accuracy": 41.3, "mean_iou": .388}, {"accuracy": 36.5, "mean_iou": .341}, [
            {"title": "Where it looks", "items": [{"image": coded(0), "caption": caption, "note": "IoU 0.50", "heat": [.5, 0, 0, 1], "boxes": [
                {"box": [.5, .5, .3, .4], "kind": "true"}, {"box": [.4, .5, .3, .4], "kind": "predicted"}]}]}])}
    for name, one in evaluations.items():
        (folder / f"evaluations/{name}.json").write_text(json.dumps(one))
    (folder / "samples.json").write_text(json.dumps({
        "text": [{"title": "Masked samples", "items": [{"words": [[" a", False, " a"], ["", True, " camel"]]}]}],
        "pairs": [{"title": "Masked samples", "items": [
            {"image": coded(1), "mask": [i % 3 == 0 for i in range(64)],
             "words": [[" the", False, " the"], [" hat", True, " cat"], [" sat", True, " sat"]]}]}]}))
    (folder / "results.json").write_text(json.dumps({
        "step": 400, "evaluations": {name: one["metrics"] for name, one in evaluations.items()}, "seconds": 481.0,
        "seconds_all": 600.0, "samples": {"pairs": 25600}, "epochs": {"pairs": 3.2},
        "data": {"pairs": {"read": 25604, "bad": {"corrupt image": 3, "empty caption": 1}, "worst_shard": "pairs/000.tar"}}}))
    (folder / "environment.json").write_text(json.dumps({
        "command": "python tools/train_net.py", "git": "abc123+changes", "precision": "bf16",
        "started": "2026-11-22T01:00:00+00:00", "versions": {"xtoolkit": "0.1.0", "timm": None},
        "machine": {"cpu": "A processor", "cores": 2}}))
    return evaluations


class Reader(HTMLParser):
    """Checks that every element is closed, in order, and gathers what a page holds."""

    VOID = {"meta", "img", "br", "hr", "line", "circle", "rect", "polyline", "i"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.cells, self.text, self._cell = [], [], [], [], [], None
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID - {"i"}:
            self.open.append(tag)
        if tag in ("td", "th"):
            self._cell = ""

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.cells.append(self._cell)
            self._cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self._cell is not None:
            self._cell += data


@pytest.fixture
def written(tmp_path):
    evaluations = fake_run(tmp_path / "xfm_tiny")
    page = write_report(tmp_path / "xfm_tiny").read_text()
    return page, Reader(page), evaluations


def test_it_is_one_page_that_fetches_nothing_and_runs_nothing(written):
    page, read, _ = written
    assert "http" not in page and "<script" not in page and "script" not in read.tags and "link" not in read.tags
    assert "@import" not in page and "url(" not in page and "{{" not in page and "{%" not in page
    sources = [v for k, v in read.attributes if k in ("src", "href", "data", "srcset")]
    assert sources and all(v.startswith("data:image/jpeg;base64,") for v in sources)
    assert not [k for k, _ in read.attributes if k.startswith("on")]


def test_every_picture_decodes(written):
    _, read, _ = written
    pictures = [v for k, v in read.attributes if k == "src"]
    assert len(pictures) == 5 + 6 + 1 + 1
    for data in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
        image.load()
        assert image.size == (48, 48) and image.format == "JPEG"


def test_heat_is_a_square_a_patch_the_hotter_the_denser(written):
    page, _, _ = written
    hot = re.findall(r'<rect class="heat" x="(.*?)" y="(.*?)" width="(.*?)" height=".*?" fill-opacity="(.*?)"/>', page)
    assert [(float(x), float(y), float(w), float(share)) for x, y, w, share in hot] == [
        (0, 0, .5, .38), (.5, 0, .5, 0), (0, .5, .5, 0), (.5, .5, .5, .75)]


def test_the_figures_are_those_of_the_files(written):
    page, read, evaluations = written
    cells = read.cells
    for figure in evaluations["retrieval"]["metrics"].values():
        assert f"{figure:.1f}" in cells
    row = cells.index("all")
    assert cells[row:row + 5] == ["all", "41.3", "36.5", "0.388", "0.341"]
    row = cells.index("floor: chance")
    assert cells[row + 3] == "4.0" and page.count('<tr class="floor">') == 1
    text = " ".join(" ".join(read.text).split())
    assert "Text to image R@10 46.2 % retrieval dual · floor 4.0" in text and "Boxes found 41.3 % testA · floor 36.5" in text
    assert "8 min 1 s" in text and "400 steps" in text
    assert "corrupt image 3; empty caption 1" in text and "pairs/000.tar" in text
    assert "22 November 2026, 01:00 UTC" in text
    assert "A processor" in text and "abc123+changes" in text and "sample://picturebook/tokenizer" in text


def test_every_loss_has_a_chart_and_every_stream_its_curve(written):
    page, _, _ = written
    pattern = r'<figure class="chart"><figcaption>(.*?)(?: <small>log</small>)?</figcaption>(.*?)</figure>'
    drawn = dict(re.findall(pattern, page, re.S))
    assert {"all losses, weighted", "mlm", "itc", "bbp", "bbp.l1", "bbp.giou", "retrieval"} <= set(drawn)
    assert drawn["itc"].count('class="line c') == 2 and drawn["itc"].count('class="raw') == 2
    assert drawn["retrieval"].count('class="level') == 2 and "Gradient norm by encoder" in drawn
    last = float(re.search(r"<b>([\d.]+)</b>", drawn["mlm"]).group(1))
    assert last == pytest.approx(8 * math.exp(-40 / 12) + 1, abs=.01)


def test_the_right_picture_is_framed_and_a_missed_one_stands_apart(written):
    page, read, _ = written
    classes = [v for k, v in read.attributes if k == "class"]
    assert classes.count("pic right") == 1 and classes.count("pic missed") == 1
    assert "right picture at place 17" in page and "--shown:5;--more:1" in page


def test_boxes_and_masks_are_drawn_where_they_are(written):
    page, _, _ = written
    assert re.search(r'class="box predicted" x="0.2500" y="0.3000" width="0.3000" height="0.4000"', page)
    assert re.search(r'class="box true" x="0.3500"', page)
    assert page.count('class="patch"') == 22 and 'x="0.3750" y="0.0000" width="0.126' in page


def test_what_users_wrote_is_escaped(tmp_path):
    fake_run(tmp_path / "run", caption=EVIL)
    change(tmp_path / "run/samples.json", lambda all: all["text"][0]["items"][0]["words"].append([EVIL, True, EVIL]))
    change(tmp_path / "run/samples.json", lambda all: all.update({EVIL: [{"title": EVIL, "text": EVIL, "items": [
        {"caption": EVIL, "note": EVIL, "image": coded(0), "boxes": [{"box": [0, 0, 1, 1], "kind": EVIL}]}]}]}))
    change(tmp_path / "run/results.json", lambda all: all["data"].update(
        {EVIL: {"read": 1, "bad": {EVIL: 1}, "worst_shard": EVIL}}))
    change(tmp_path / "run/evaluations/testA.json", lambda one: one.update(
        table=[[EVIL, EVIL], [[EVIL, "1"]]], headlines={"accuracy": EVIL}))
    with open(tmp_path / "run/config.yaml", "a") as f:
        f.write("plugins: ['</pre><script>x</script>']\n")
    read = Reader(write_report(tmp_path / "run").read_text())
    assert "script" not in read.tags
    assert all(v.startswith("data:") for k, v in read.attributes if k in ("src", "href"))
    assert EVIL in "".join(read.text)


def change(path, how):
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))


def test_lines_of_guessing_are_drawn_and_said(tmp_path):
    """Of a loss and of its parts, a dashed line a stream, where the last of them are; a guess is no curve of its own."""
    fake_run(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()[:-1]]
    for line in lines:
        line |= {"itc": 3.0, "itc.guess": 4.0, "pairs.itc.guess": 4.0, "region.bbp.guess": 0.4, "region.bbp.l1.guess": 1 + line["step"] / 400}
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path / "run").read_text()
    chart = lambda name: re.search(rf"<figcaption>{name}(?: <small>log</small>)?</figcaption>(.*?)</figure>", page, re.S).group(1)
    levels = lambda name: len(re.findall(r'class="[^"]*\blevel\b', chart(name)))
    assert [levels(name) for name in ("itc", "mlm", "bbp", r"bbp\.l1", r"bbp\.giou")] == [1, 0, 1, 1, 0]
    assert "guess</figcaption>" not in page and chart("itc").count('class="line c') == 2
    text = " ".join(Reader(page).text)
    assert "learnt beyond guessing" in text and "itc (region): " in text and "l1 (region" not in text
    last = [line["region.bbp"] for line in lines[-8:]]
    assert f"bbp (region): {sum(last) / 8:.4g} over the last 80 steps, guessing is 0.4: not learnt, it is worse than guessing." in text


def test_a_run_that_goes_on_and_one_of_which_little_is_known(tmp_path):
    fake_run(tmp_path / "run", lines=20)
    (tmp_path / "run/results.json").unlink()
    change(tmp_path / "run/evaluations/retrieval.json", lambda one: one.update(step=200, figures=[]))
    text = " ".join(Reader(write_report(tmp_path / "run").read_text()).text)
    assert "200 of 400 steps" in text and "46.2" in text
    for name in ("metrics.jsonl", "environment.json", "samples.json", "evaluations/testA.json", "evaluations/retrieval.json"):
        (tmp_path / "run" / name).unlink()
    Reader(write_report(tmp_path / "run").read_text())


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path)


class Colours(Task):
    """Of a plugin: which colour a picture has."""

    HEADLINES = {"right": "Colours told, %"}

    def examples(self, outputs):
        return [{"name": name, "said": said} for name, said in zip(outputs["names"], outputs["said"])]

    def figures(self, examples):
        return [{"title": f"{e['said']}?", "text": "by a plugin", "items": [
            {"image": photograph(n), "caption": e["name"], "right": n == 0,
             "boxes": [{"box": [.5, .5, .2, .2], "kind": "lamp"}]}]} for n, e in enumerate(examples)]


def test_a_plugins_task_is_in_tables_tiles_curves_and_figures(tmp_path):
    """No line of the report names it: what it gives is in its record."""
    fake_run(tmp_path / "run")
    task, metrics, floor = Colours(), {"right": 62.5, "north.right": 70.0, "loss": .4321}, {"right": 12.5}
    figures = task.figures(task.examples({"names": ["sky", "sea"], "said": ["blue", "green"]}))
    for figure in figures:  # as a run keeps them
        figure["items"][0]["image"] = jpeg(figure["items"][0]["image"])
    one = record(task.table(metrics, floor), task.HEADLINES, metrics, floor, figures)
    (tmp_path / "run/evaluations/colours.json").write_text(json.dumps(one))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()[:-1]]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(
        line | {"colours.right": line["step"] / 8, "colours.north.right": line["step"] / 7, "colours.loss": 1}) + "\n"
        for line in lines))
    page = write_report(tmp_path / "run").read_text()
    read = Reader(page)
    text = " ".join(" ".join(read.text).split())
    assert "Colours told 62.5 % colours · floor 12.5" in text and "blue? by a plugin" in text and "lamp box" in text
    row = read.cells.index("right")
    assert read.cells[row - 3:row + 6] == ["metric", "value", "floor", "right", "62.500", "12.500", "north.right", "70.000", "–"]
    chart = re.search(r"<figcaption>colours.*?</figcaption>(.*?)</figure>", page, re.S).group(1)
    assert chart.count('class="line c') == 2 and "north.right" in chart and "loss" not in chart
    assert page.count('class="box c0"') == 2


# ---- charts
# ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("values", [[1e-5, 3.0], [0.0, 1.0], [-2.0, 5.0], [3.0, 3.0], [0.0, 0.0], [1e3, 1e6],
                                    [2.01, 2.02]])
def test_an_axis_spans_its_values_with_a_few_ticks(values):
    axis = charts.Axis.over(values)
    assert axis.low <= min(values) + 1e-9 and axis.high >= max(values) - 1e-9 and 2 <= len(axis.ticks) <= 7
    assert axis.log == (values[0] > 0 and values[1] / values[0] > charts.LOG_FROM)
    assert -1e-9 <= axis.share(values[0]) <= axis.share(values[1]) <= 1 + 1e-9
    assert all(axis.low - 1e-9 <= t <= axis.high * (1 + 1e-9) + 1e-9 for t in axis.ticks)
    assert len({charts.label(t) for t in axis.ticks}) == len(axis.ticks)


def test_smoothing_is_a_centred_mean_and_keeps_a_straight_line():
    straight = [(i, 2.0 * i) for i in range(100)]
    assert [v for _, v in charts.smoothed(straight)] == pytest.approx([v for _, v in straight])
    noisy = [(i, (-1.0) ** i) for i in range(100)]
    assert abs(charts.smoothed(noisy)[50][1]) < 0.2


def test_ticks_and_figures_read_well():
    assert [charts.label(v) for v in (0, 200000, 1500, 25, .05, 1e-5, 2.5e-4, 1e6)] == [
        "0", "200k", "1.5k", "25", "0.05", "1e-5", "2.5e-4", "1M"]
    assert [charts.number(v) for v in (12345, 123.4, 12.34, 1.234, .1234, 0)] == [
        "12,345", "123", "12.3", "1.23", "0.123", "0"]
    assert charts.step_ticks(10, 400) == [100, 200, 300, 400] and charts.step_ticks(7, 7) == [7]
    assert [duration(s) for s in (45, 492, 12000)] == ["45 s", "8 min 12 s", "3 h 20 min"]


# ---- tables
# ----------------------------------------------------------------------------------------------------------------
def test_tables_for_the_console_share_a_heading_and_name_their_rows():
    boxes = BoxAccuracy()
    tables = {"retrieval": (["%", "R@1"], [["dual", "11.4"], ["floor: chance", "0.4"]]),
              "testA": boxes.table({"accuracy": 41.3, "mean_iou": .388}, {"accuracy": 36.5, "mean_iou": .341}),
              "glue": (["metric", "value", "floor"], [["acc", "0.500", "–"]]),
              "both": boxes.table({"accuracy": 40.0, "mean_iou": .3, "b.accuracy": 39.0, "b.mean_iou": None}, {})}
    found = {title: rows for title, _, rows in result_tables(tables)}
    assert list(found) == ["retrieval", "testA, both", "glue"] and found["retrieval"][1][0] == "floor: chance"
    assert found["testA, both"] == [["testA all", "41.3", "36.5", "0.388", "0.341"], ["both all", "40.0", "–", "0.300", "–"],
                                    ["both b", "39.0", "–", "–", "–"]]
    twice = result_tables({name: (["%", "R@1"], [["dual", "1"], ["floor: chance", "0.4"]]) for name in ("coco", "flickr")})
    assert [row[0] for row in twice[0][2]] == ["coco dual", "floor: chance, coco", "flickr dual", "floor: chance, flickr"]
    lines = aligned([["what", "right"], *found["testA, both"]][1:]).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[2].index("40.0") == lines[0].index("41.3")
    printed = format_tables(tables).split("\n\n")
    assert len(printed) == 3 and printed[0].splitlines()[0] == "retrieval"
    assert printed[0].splitlines()[3].split() == ["dual", "11.4"]


# ---- figures
# ---------------------------------------------------------------------------------------------------------------
def test_pictures_come_as_tensors_pil_images_or_base64():
    picture = photograph(3, side=400)
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    assert source(picture) == source(image) == source(jpeg(picture)) and image.size == (400, 400)
    assert Image.open(io.BytesIO(base64.b64decode(source(picture, 300).partition(",")[2]))).size == (300, 300)


def test_kinds_of_boxes_keep_their_colours_and_every_key_may_be_missing():
    where = [.5, .5, 1, 1]
    figure = Figure.read({"items": [{"boxes": [{"box": where, "kind": k} for k in ("cat", "true")]},
                                    {"boxes": [{"box": where, "kind": k} for k in ("dog", "cat")]}, {}]})
    assert figure.looks == {"cat": "c0", "true": "true", "dog": "c1"} and figure.title == "" and figure
    assert not Figure.read({}) and not Figure.read({"title": "nothing"})
    wrong = Figure.read({"title": "x", "items": [{"imge": "a"}]})
    assert wrong.text == "Not shown: items[0]: unknown key `imge` of Item; did you mean `image`?" and not wrong.items


def shown(tokens):
    return [(part["gap"], part["shown"], part["kind"]) for part in reading(tokens)]


def test_words_are_shown_hidden_swapped_and_kept():
    tokens = [(" the", False, " the"), ("", True, " bear"), (" red", True, " cat"), (" sat", True, " sat"), ("s", False, "s")]
    assert shown(tokens) == [("", "the", None), (" ", "xxxx", "hid"), (" ", "red", "swap"), (" ", "sat", "swap"), ("", "s", None)]
    assert [part["note"] for part in reading(tokens)[1:4]] == ["bear", "in the place of: cat",
                                                             "left as it is, to be predicted all the same"]
    # Word pieces without spaces of their own: ## joins.
    assert shown([("a", False, "a"), ("cat", False, "cat"), ("##s", True, "##s")]) == [
        ("", "a", None), (" ", "cat", None), ("", "s", "swap")]


# ---- what is wrong or old
# ---------------------------------------------------------------------------------------------------
def test_a_wrong_figure_in_a_folder_is_said_and_the_rest_is_shown(tmp_path):
    fake_run(tmp_path / "run")
    change(tmp_path / "run/evaluations/retrieval.json", lambda one: one["figures"].insert(0, {"titel": "x"}))
    change(tmp_path / "run/evaluations/testA.json", lambda one: one.update(figures=[{"items": [{"boxes": [{"box": None}]}]}, 7]))
    change(tmp_path / "run/samples.json", lambda all: all.update(text=[{"items": [{"words": "words"}]}]))
    text = " ".join(" ".join(Reader(write_report(tmp_path / "run").read_text()).text).split())
    for said in ("unknown key `titel` of Figure; did you mean `title`?", "items[0]: `boxes` of Item must be a list of {box:",
                 "a figure must be a mapping, not int", "items[0]: `words` of Item must be a list of", "right picture at place 17"):
        assert said in text, said


def test_an_evaluation_of_another_step_says_so(tmp_path):
    fake_run(tmp_path / "run")
    change(tmp_path / "run/evaluations/testA.json", lambda one: one.update(step=300))
    page = write_report(tmp_path / "run").read_text()
    text = " ".join(" ".join(Reader(page).text).split())
    assert "testA · floor 36.5 · at step 300, 22 November 2026, 01:08 UTC" in text
    assert "<h3>testA (at step 300, 22 November 2026, 01:08 UTC)</h3>" in page
    assert text.count("at step 300") == 3 and text.count("at step 400") == 1 and "<h3>retrieval</h3>" in page


def test_only_the_task_says_how_its_samples_were_chosen(tmp_path):
    fake_run(tmp_path / "run")
    page = lambda: write_report(tmp_path / "run").read_text()
    assert "spread evenly" not in page() and "not picked" not in page()
    example = {"ids": [3], "right": "a", "pictures": ["a"], "rank": 1, "way": "dual"}
    lead = Retrieval().figures([example])[0]
    change(tmp_path / "run/evaluations/retrieval.json", lambda one: one["figures"].insert(0, lead))
    assert page().count('<p class="lead">Texts spread evenly over the data, not picked.') == 1
    assert page().count('<section class="query">') == 2
