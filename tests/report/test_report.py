"""The report of a run made up here: well-formed, self-contained, escaped, and with the figures of its files."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.report import charts
from xtoolkit.report.page import duration, write_report
from xtoolkit.report.gallery import collect_gallery, find_pictures, jpeg, masked_words
from xtoolkit.report.sections import words
from xtoolkit.report.tables import aligned, format_table, result_tables

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
    """Normalised pixels of a smooth picture, so that JPEG keeps it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    return torch.stack([torch.sin(3 * x + seed), torch.cos(4 * y + seed), torch.sin(2 * (x + y) - seed)])


def fake_run(folder, caption="a brown camel on the left", lines=40):
    """A folder as a run leaves it, and a gallery."""
    folder.mkdir(exist_ok=True)
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
    evaluations = {"retrieval": both, "testA": {"accuracy": 41.3, "mean_iou": .388}}
    (folder / "results.json").write_text(json.dumps({
        "step": 400, "evaluations": evaluations, "seconds": 481.0, "seconds_all": 600.0, "samples": {"pairs": 25600},
        "epochs": {"pairs": 3.2}, "data": {"pairs": {"read": 25604, "bad": {"corrupt image": 3, "empty caption": 1},
                                                     "worst_shard": "pairs/000.tar"}}}))
    (folder / "environment.json").write_text(json.dumps({
        "command": "python tools/train_net.py", "git": "abc123+changes", "precision": "bf16",
        "started": "2026-11-22T01:00:00+00:00", "versions": {"xtoolkit": "0.1.0", "timm": None},
        "machine": {"cpu": "A processor", "cores": 2}}))
    pictures = [jpeg(photograph(i)) for i in range(6)]
    shown = [{"picture": p, "right": i == 2} for i, p in enumerate(pictures[:5])]
    chance = {"t2i_r1": .4, "t2i_r5": 2.0, "t2i_r10": 4.0, "i2t_r1": .4, "i2t_r5": 2.0, "i2t_r10": 3.9, "r_mean": 2.1}
    gallery = {
        "floors": {"retrieval": {f"{w}.{k}": v for w in ("dual", "matched") for k, v in chance.items()},
                   "testA": {"accuracy": 36.5, "mean_iou": .341}},
        "retrieval": {"retrieval": [
            {"query": caption, "way": "matched", "rank": 3, "right": pictures[2], "pictures": shown},
            {"query": "three lemons", "way": "matched", "rank": 17, "right": pictures[5],
             "pictures": [{"picture": p, "right": False} for p in pictures[:5]]}]},
        "boxes": {"testA": [{"text": caption, "picture": pictures[0], "predicted": [.4, .5, .3, .4],
                             "true": [.5, .5, .3, .4], "iou": .5}]},
        "masked": {"text": [{"picture": None, "mask": None, "words": [(" a", False, " a"), ("", True, " camel")]}],
                   "pairs": [{"picture": pictures[1], "mask": [i % 3 == 0 for i in range(64)],
                              "words": [(" the", False, " the"), (" hat", True, " cat"), (" sat", True, " sat")]}]}}
    return evaluations, gallery


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
    evaluations, gallery = fake_run(tmp_path / "xfm_tiny")
    page = write_report(tmp_path / "xfm_tiny", gallery).read_text()
    return page, Reader(page), evaluations


def test_it_is_one_page_that_fetches_nothing_and_runs_nothing(written):
    page, read, _ = written
    assert "http" not in page and "<script" not in page and "script" not in read.tags and "link" not in read.tags
    assert "@import" not in page and "url(" not in page
    sources = [v for k, v in read.attributes if k in ("src", "href", "data", "srcset")]
    assert sources and all(v.startswith("data:image/jpeg;base64,") for v in sources)
    assert not [k for k, _ in read.attributes if k.startswith("on")]


def test_every_picture_decodes(written):
    _, read, _ = written
    pictures = [v for k, v in read.attributes if k == "src"]
    assert len(pictures) == 5 + 5 + 1 + 1 + 1
    for data in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
        image.load()
        assert image.size == (48, 48) and image.format == "JPEG"


def test_the_figures_are_those_of_the_files(written):
    page, read, evaluations = written
    cells = read.cells
    for figure in evaluations["retrieval"].values():
        assert f"{figure:.1f}" in cells
    row = cells.index("testA")
    assert cells[row:row + 5] == ["testA", "41.3", "36.5", "0.388", "0.341"]
    row = cells.index("chance")
    assert cells[row + 3] == "4.0"
    text = " ".join(read.text)
    assert "8 min 1 s" in text and "400 steps" in text
    assert "corrupt image 3; empty caption 1" in text and "pairs/000.tar" in text
    assert "22 November 2026, 01:00 UTC" in text
    assert "A processor" in text and "abc123+changes" in text and "sample://picturebook/tokenizer" in text


def test_every_loss_has_a_chart_and_every_stream_its_curve(written):
    page, _, _ = written
    pattern = r'<figure class="chart"><figcaption>(.*?)(?: <small>log</small>)?</figcaption>(.*?)</figure>'
    drawn = dict(re.findall(pattern, page))
    assert {"all losses, weighted", "mlm", "itc", "bbp", "bbp.l1", "bbp.giou", "retrieval"} <= set(drawn)
    assert drawn["itc"].count('class="line') == 2 and drawn["itc"].count('class="raw') == 2
    assert "level" in drawn["retrieval"] and "Gradient norm by encoder" in drawn
    last = float(re.search(r"<b>([\d.]+)</b>", drawn["mlm"]).group(1))
    assert last == pytest.approx(8 * math.exp(-40 / 12) + 1, abs=.01)


def test_the_right_picture_is_framed_and_a_missed_one_stands_apart(written):
    page, read, _ = written
    classes = [v for k, v in read.attributes if k == "class"]
    assert classes.count("pic right") == 1 and classes.count("pic missed") == 1
    assert "right picture at place 17" in page


def test_boxes_and_masks_are_drawn_where_they_are(written):
    page, _, _ = written
    assert re.search(r'class="box predicted" x="0.2500" y="0.3000" width="0.3000" height="0.4000"', page)
    assert re.search(r'class="box true" x="0.3500"', page)
    assert page.count('class="patch"') == 22 and 'x="0.3750" y="0.0000" width="0.126' in page


def test_what_users_wrote_is_escaped(tmp_path):
    _, gallery = fake_run(tmp_path / "run", caption=EVIL)
    gallery["masked"]["text"][0]["words"].append((EVIL, True, EVIL))
    results = json.loads((tmp_path / "run/results.json").read_text())
    results["evaluations"][EVIL] = {EVIL: 1.0}
    results["data"][EVIL] = {"read": 1, "bad": {EVIL: 1}, "worst_shard": EVIL}
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    with open(tmp_path / "run/config.yaml", "a") as f:
        f.write("plugins: ['</pre><script>x</script>']\n")
    read = Reader(write_report(tmp_path / "run", gallery).read_text())
    assert "script" not in read.tags
    assert all(v.startswith("data:") for k, v in read.attributes if k in ("src", "href"))
    assert EVIL in "".join(read.text)


def test_a_run_that_goes_on_and_one_without_pictures(tmp_path):
    fake_run(tmp_path / "run", lines=20)
    (tmp_path / "run/results.json").unlink()
    text = " ".join(Reader(write_report(tmp_path / "run", {}).read_text()).text)
    assert "200 of 400 steps" in text and "23.1" in text      # half way: 46.2 / 2
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/environment.json").unlink()
    Reader(write_report(tmp_path / "run", {}).read_text())


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path, {})


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
def test_tables_for_the_console_stand_beside_chance_and_floor():
    evaluations = {"retrieval": {f"dual.{k}": v for k, v in RECALLS.items()},
                   "testA": {"accuracy": 41.3, "mean_iou": .388}, "glue": {"acc": 0.5},
                   "both": {"accuracy": 40.0, "mean_iou": .3, "b.accuracy": 39.0, "b.mean_iou": None}}
    floors = {"retrieval": {f"dual.{k}": 1.0 for k in RECALLS}, "testA": {"accuracy": 36.5, "mean_iou": .341}}
    tables = dict(result_tables(evaluations, floors))
    assert tables["retrieval"][1] == ["dual encoder", "11.4", "34.6", "46.2", "18.4", "52.4", "71.6", "39.1"]
    assert tables["retrieval"][2][0] == "chance" and tables["glue"][1] == ["acc", "0.500", "–"]
    assert tables["boxes"][1:] == [["testA", "41.3", "36.5", "0.388", "0.341"], ["both", "40.0", "–", "0.300", "–"],
                                   ["both b", "39.0", "–", "–", "–"]]
    lines = aligned(tables["boxes"]).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["testA", "41.3", "36.5", "0.388", "0.341"]
    assert lines[2].index("41.3") == lines[3].index("40.0")
    printed = format_table(evaluations["retrieval"], floors["retrieval"]).splitlines()
    assert len(printed) == 4
    assert printed[2].split() == ["dual", "encoder", "11.4", "34.6", "46.2", "18.4", "52.4", "71.6", "39.1"]


# ---- gallery
# ---------------------------------------------------------------------------------------------------------------
WORDS = {0: "<s>", 1: "", 2: "</s>", 3: "", 5: " red", 6: " bear", 7: " runs"}
TOKENIZER = SimpleNamespace(decode=lambda ids: "".join(WORDS[i] for i in ids if i > 3), special={0, 1, 2, 3})


def loader():
    for n in range(3):
        yield Batch(image=ImageField(torch.stack([photograph(2 * n), photograph(2 * n + 1)]),
                                     image_id=[f"p{2 * n}", f"p{2 * n + 1}"]))


def test_pictures_come_back_as_they_were_before_normalisation():
    mean, std = (.5, .4, .3), (.2, .25, .3)
    levels = torch.linspace(0, 255, 64).round()[None, None].expand(3, 64, 64)
    pixels = (levels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    image = Image.open(io.BytesIO(jpeg(pixels, mean, std)))
    assert image.size == (64, 64)
    assert abs(image.getpixel((63, 5))[0] - 255) < 8 and abs(image.getpixel((32, 5))[2] - 130) < 8
    assert max(Image.open(io.BytesIO(jpeg(torch.zeros(3, 384, 384)))).size) == 192


def test_the_loader_is_read_no_further_than_needed():
    read = []
    source = (read.append(1) or b for b in loader())
    assert set(find_pictures(source, {"p1", "p2"})) == {"p1", "p2"} and len(read) == 2


def test_a_gallery_from_results_and_batches(tmp_path):
    results = {"retrieval": {"metrics": {}, "floor": {"dual.t2i_r1": 1.0}, "examples": [
                   {"ids": [0, 5, 6, 2], "right": "p3", "rank": 2, "way": "dual", "pictures": ["p0", "p3", "p1"]}]},
               "boxes": {"metrics": {}, "floor": {}, "examples": [
                   {"ids": [0, 7, 2], "image_id": "p5", "predicted": [.5] * 4, "true": [.4] * 4, "iou": .6}]},
               "other": {"metrics": {}, "floor": {}, "examples": []}}
    text = TextField(torch.tensor([[0, 5, 6, 7, 2]]), torch.ones(1, 5, dtype=torch.bool),
                     masked_ids=torch.tensor([[0, 3, 6, 5, 2]]), masked_pos=torch.tensor([1, 3]),
                     labels=torch.tensor([5, 7]))
    image = ImageField(photograph(0)[None], patch_mask=torch.arange(16)[None] % 2 == 0, image_id=["a"])
    gallery = collect_gallery(results, {"retrieval": loader(), "boxes": loader()},
                              {"pairs": Batch(text=text, image=image), "plain": Batch(image=image.clean())}, TOKENIZER)
    (query,) = gallery["retrieval"]["retrieval"]
    assert query["query"].strip() == "red bear" and [p["right"] for p in query["pictures"]] == [False, True, False]
    assert query["right"] == query["pictures"][1]["picture"] == jpeg(photograph(3))
    assert gallery["boxes"]["boxes"][0]["picture"] == jpeg(photograph(5))
    assert gallery["floors"]["retrieval"] == {"dual.t2i_r1": 1.0}
    assert list(gallery["masked"]) == ["pairs"]
    (example,) = gallery["masked"]["pairs"]
    assert example["words"] == [("", True, " red"), (" bear", False, " bear"), (" red", True, " runs")]
    assert sum(example["mask"]) == 8
    fake_run(tmp_path / "run")
    Reader(write_report(tmp_path / "run", gallery).read_text())


def test_masked_words_of_a_later_row():
    text = TextField(torch.tensor([[0, 5, 2, 1], [0, 6, 7, 2]]), torch.tensor([[True, True, True, False], [True] * 4]),
                     masked_ids=torch.tensor([[0, 5, 2, 1], [0, 6, 3, 2]]), masked_pos=torch.tensor([6]),
                     labels=torch.tensor([7]))
    assert masked_words(text, 0, TOKENIZER) == [(" red", False, " red")]
    assert masked_words(text, 1, TOKENIZER) == [(" bear", False, " bear"), ("", True, " runs")]


def test_words_are_shown_hidden_swapped_and_kept():
    html = words([(" the", False, " the"), ("", True, " bear"), (" red", True, " cat"), (" sat", True, " sat"),
                  ("s", False, "s")])
    assert '>the <span class="hid" title="bear">xxxx</span> ' in html
    assert '</span> <span class="swap" title="in the place of: cat">red</span>' in html
    assert 'left as it is' in html and html.endswith("sat</span>s</p>")
    assert ">play ing<" not in words([("play", False, "play"), ("##ing", False, "##ing"), ("now", False, "now")])
