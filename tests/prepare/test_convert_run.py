"""Several processes, runs that were interrupted, and the summary page of a conversion."""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from miniature import genome, gzipped, jpeg, karpathy, put, read, shards

from xtoolkit.prepare import coco, images, spans, stats, text, vg
from xtoolkit.prepare.official import BadRecord, Report
from xtoolkit.prepare.run import Job, WorkerDied, run
from xtoolkit.prepare.writer import LinePart, Options, TarPart
from xtoolkit.report.prepared import write_summary

ROOT = Path(__file__).parents[2]


def folder(root, count=6):
    for n in range(count):
        put(root / f"in/{n}.jpg", jpeg(colour=(n, 0, 0)))
    return root / "in"


def bytes_of(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "summary.html"}


def unfinished(out):
    return [path for path in out.iterdir() if path.name.startswith(".unfinished")]


# --- going on after an interruption --------------------------------------------------------------------------------

def test_a_run_that_stopped_goes_on_and_gives_what_an_unbroken_one_gives(tmp_path):
    source = folder(tmp_path)
    images.convert(source, Options(tmp_path / "whole", shard_size=2))
    order = [s["json"]["file"] for n in range(3) for s in read(tmp_path / f"whole/train-0000{n}.tar").values()]
    lost = source / order[4]  # in the third shard
    data = lost.read_bytes()
    lost.unlink()
    lost.write_bytes(b"junk")
    options = Options(tmp_path / "out", shard_size=2)
    with pytest.raises(BadRecord, match=f"{order[4]}: .*not a picture"):
        images.convert(source, options)
    hidden, = unfinished(tmp_path / "out")
    assert shards(tmp_path / "out") == [] and len(shards(hidden)) >= 2  # two are done, the third is begun
    times = {path.name: path.stat().st_mtime_ns for path in sorted(hidden.glob("*.tar"))[:2]}
    lost.write_bytes(data)
    put(hidden / "train-00002.json", b'{"made_from": "')  # as a kill leaves it
    report = images.convert(source, options)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole") and unfinished(tmp_path / "out") == []
    assert [(tmp_path / f"out/train-0000{n}.tar").stat().st_mtime_ns for n in range(2)] == list(times.values())
    assert report.written["train"]["samples"] == 6


@pytest.mark.parametrize("change, again", [
    (lambda annotations, pictures, hidden: None, 0),
    (lambda annotations, pictures, hidden: next(hidden.glob("train-00000-*.tar")).write_bytes(b"cut"), 1),
    (lambda annotations, pictures, hidden: next(hidden.glob("train-00000-*.tar")).unlink(), 1),
    (lambda annotations, pictures, hidden: put(annotations, json.loads(
        annotations.read_text().replace("thing 1", "other 1"))), 1),
    (lambda annotations, pictures, hidden: [note.unlink() for note in hidden.glob("*.json")], 4),
])
def test_only_what_changed_is_made_again(tmp_path, monkeypatch, change, again):
    annotations, pictures = karpathy(tmp_path, lambda r: r[4].update(sentences=None))
    options, done = Options(tmp_path / "out", shard_size=1), []
    with pytest.raises(BadRecord, match="image 5 .*`sentences` is null"):
        coco.convert(annotations, pictures, options)
    hidden, = unfinished(tmp_path / "out")
    assert len(shards(hidden)) == 4
    found = json.loads(annotations.read_text())
    found["images"].pop()
    put(annotations, found)
    change(annotations, pictures, hidden)
    close = TarPart.__exit__
    monkeypatch.setattr(TarPart, "__exit__", lambda part, *a: (done.append(part.prefix), close(part, *a))[1])
    coco.convert(annotations, pictures, options)
    assert len(done) == again
    captions = read(tmp_path / "out/train-00000.tar")["000000000001"]["json"]["captions"]
    assert captions[1] == json.loads(annotations.read_text())["images"][0]["sentences"][1]["raw"]


def test_other_options_make_all_anew_and_other_folders_are_left_alone(tmp_path):
    source = folder(tmp_path)
    put(source / "bad.jpg", b"junk")
    with pytest.raises(BadRecord):
        images.convert(source, Options(tmp_path / "out", shard_size=2))
    assert images.convert(source, Options(tmp_path / "out", shard_size=3, skip_bad=True)).written["train"] == {
        "samples": 6, "captions": 0, "boxes": 0}
    assert unfinished(tmp_path / "out") == []
    with pytest.raises(FileExistsError, match="train-00000.tar is there already: remove .*train-.*tar or give"):
        images.convert(source, Options(tmp_path / "out", shard_size=3))
    assert images.convert(source, Options(tmp_path / "out", skip_bad=True), "more").written["more"]["samples"] == 6


def test_a_wrong_record_that_was_skipped_is_not_forgotten(tmp_path, monkeypatch):
    source = folder(tmp_path)
    put(source / "bad.jpg", b"junk")
    options = Options(tmp_path / "out", shard_size=2, skip_bad=True)
    monkeypatch.setattr("xtoolkit.prepare.run._finish", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        images.convert(source, options)
    monkeypatch.undo()
    with pytest.raises(BadRecord, match="bad.jpg"):
        images.convert(source, Options(tmp_path / "out", shard_size=2))
    report = images.convert(source, options)
    assert report.left_out["wrong records"][0] == 1 and report.written["train"]["samples"] == 6


@pytest.mark.parametrize("moves", range(5))
def test_a_run_that_was_killed_while_it_moved_its_shards_goes_on(tmp_path, monkeypatch, moves):
    """Three shards and the manifest are moved, and the hidden folder is removed: a kill before each, twice."""
    source, options = folder(tmp_path), Options(tmp_path / "out", shard_size=2)
    images.convert(source, Options(tmp_path / "whole", shard_size=2))
    replace, done = os.replace, []

    def killed(*args):
        if len(done) == moves:
            raise MemoryError
        done.append(args)
        replace(*args)
    for time in ("in the move", "while the next run takes it back"):
        done.clear()
        monkeypatch.setattr(os, "replace", killed)
        monkeypatch.setattr("shutil.rmtree", lambda *args, **how: killed(*args))
        with pytest.raises(MemoryError):
            images.convert(source, options)
        monkeypatch.undo()
        assert unfinished(tmp_path / "out") and (time != "in the move" or len(shards(tmp_path / "out")) == min(moves, 3))
    made, work = [], TarPart.write
    monkeypatch.setattr(TarPart, "write", lambda part, *sample: (made.append(sample), work(part, *sample)))
    images.convert(source, options)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole") and not made


def test_two_runs_at_once_do_not_write_into_one_folder(tmp_path):
    source, started = folder(tmp_path), []

    def inside(*args):
        if not started:
            started.append(1)
            with pytest.raises(FileExistsError, match="another process is writing the same there"):
                images.convert(source, Options(tmp_path / "out"))
        return {}
    job = Job("train", LinePart, lambda payload, part: inside(), None)
    run("images-train", [job], Options(tmp_path / "out"), Report())


# --- processes -----------------------------------------------------------------------------------------------------

def suicide(payload, part):
    os.kill(os.getpid(), signal.SIGKILL)


def write_one(payload, part):
    part.write(payload)


def test_a_worker_that_is_killed_ends_the_run_with_a_word_and_what_is_done_is_kept(tmp_path):
    before = multiprocessing.active_children()  # loaders that other tests have left
    jobs = [Job("train", LinePart, write_one, "a"), Job("train", LinePart, suicide, None)]
    with pytest.raises(WorkerDied, match="ended from outside .*give the same command again"):
        run("x", jobs, Options(tmp_path, workers=2), Report())
    assert set(multiprocessing.active_children()) <= set(before)
    jobs[1] = Job("train", LinePart, write_one, "b")
    assert run("x", jobs, Options(tmp_path, workers=2), Report()).written["train"]["samples"] == 2
    assert (tmp_path / "train-00001.jsonl").read_text() == '{"text":"b"}\n'


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_command_goes_on_after_two_signals_and_leaves_no_process(tmp_path, how):
    """Sixty files of text, a job each: stopped in the middle, once more later on, then the same command."""
    for n in range(60):
        put(tmp_path / f"in/{n:03d}.txt", b"some words of row %02d\n" % n * 4000)
    command = [sys.executable, "-c", "import sys; from xtoolkit.cli import prepare; from xtoolkit.prepare import spans;"
               "spans.SPAN = 84_000; sys.exit(prepare.main())", "text", "--input", str(tmp_path / "in"), "--out"]
    hidden, times = tmp_path / "out/.unfinished-text-train", {}
    for finished in (5, 20):
        begun = subprocess.Popen([*command, str(tmp_path / "out"), "--workers", "2"], start_new_session=True)
        while len(list(hidden.glob("*.json"))) < finished:
            assert begun.poll() is None
            time.sleep(0.01)
        os.killpg(begun.pid, how) if how == signal.SIGINT else begun.kill()
        assert begun.wait() == (130 if how == signal.SIGINT else -signal.SIGKILL)
        deadline = time.monotonic() + 60
        while subprocess.run(["pgrep", "-s", str(begun.pid)], stdout=subprocess.DEVNULL).returncode == 0:
            assert time.monotonic() < deadline, "workers outlive the command"
            time.sleep(0.1)
        assert all(note.stat().st_mtime_ns == time for note, time in times.items()), "done twice"
        times = {note: note.stat().st_mtime_ns for note in hidden.glob("*.json") if note.read_text().endswith("}")}
    said = subprocess.run([*command, str(tmp_path / "out"), "--workers", "2"], capture_output=True, text=True, check=True)
    again = re.search(r"60/60 .*, 240,000 samples, ([\d,]+) parts are from an earlier run", said.stderr).group(1)
    assert int(again) == len(times) >= 20 and "train: 240,000 samples" in said.stdout
    subprocess.run([*command, str(tmp_path / "whole"), "--workers", "1"], check=True)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole") and len(shards(tmp_path / "out")) == 60


# --- how files are cut ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("span", [1, 2, 3, 5, 7, 16, 33, 1000])
@pytest.mark.parametrize("paragraphs", [False, True])
def test_a_file_that_is_cut_gives_each_text_once(tmp_path, monkeypatch, span, paragraphs):
    path = put(tmp_path / "a.txt", b"one\ntwo\n\n\nthree\n  \nfour five\nsix\n\nseven")
    whole = text_of(tmp_path / "whole", [path], paragraphs)
    assert whole == (["one two", "three", "four five six", "seven"] if paragraphs
                     else ["one", "two", "three", "four five", "six", "seven"])
    monkeypatch.setattr(spans, "SPAN", span)
    assert text_of(tmp_path / "cut", [path], paragraphs) == whole


def text_of(out, paths, paragraphs=False):
    text.convert(paths, Options(out), paragraphs=paragraphs)
    return [json.loads(line)["text"] for name in shards(out) for line in (out / name).read_text().splitlines()]


def test_small_files_share_a_shard_and_gzipped_ones_are_never_cut(tmp_path, monkeypatch):
    c4 = [gzipped(tmp_path / f"c4-train.{n:05d}-of-01024.json.gz", [{"text": f"Text {n} {m}", "url": "u"}
                                                                  for m in range(3)]) for n in range(4)]
    assert text_of(tmp_path / "one", c4)[:4] == ["Text 0 0", "Text 0 1", "Text 0 2", "Text 1 0"]
    assert shards(tmp_path / "one") == ["train-00000.jsonl"]
    monkeypatch.setattr(spans, "SPAN", c4[0].stat().st_size + 1)
    assert len(text_of(tmp_path / "two", c4)) == 12 and len(shards(tmp_path / "two")) == 2


def test_a_wrong_line_of_a_cut_file_is_placed(tmp_path, monkeypatch):
    path = put(tmp_path / "a.jsonl", b'{"text": "x"}\n' * 10 + b'{"text" "y"}\n')
    monkeypatch.setattr(spans, "SPAN", 70)
    with pytest.raises(BadRecord, match="a.jsonl: line 1 after byte 140: broken JSON at column 9"):
        text.convert([path], Options(tmp_path / "out"))


# --- what is counted, the manifest and the page ---------------------------------------------------------------------------------

def test_the_manifest_knows_the_content_of_every_file(tmp_path):
    options = Options(tmp_path / "out", shard_size=2)
    text.convert([put(tmp_path / "a.txt", b"one\ntwo\nthree\n")], options)
    images.convert(folder(tmp_path, 3), options, "pictures")
    noted = {name: file for path in (tmp_path / "out").glob("prepared-*.json")
             for name, file in json.loads(path.read_text())["files"].items()}
    assert sorted(noted) == shards(tmp_path / "out")
    for name, file in noted.items():
        data = (tmp_path / "out" / name).read_bytes()
        assert file == {"samples": 2 if "00000" in name else 1, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_records_are_checked_without_being_written(tmp_path):
    whole = images.convert(folder(tmp_path), Options(tmp_path / "out", shard_size=2))
    report = images.convert(folder(tmp_path), Options(None, shard_size=2))
    assert report.as_dict() == whole.as_dict() and sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_histograms_add_up_in_any_order_and_count_what_was_written():
    parts = [Report() for _ in range(3)]
    info = {"captions": ["a b c"] * 2, "regions": [{"box": [0, 0, 20, 15], "caption": ["x", "y z"]}]}
    for n in range(30):
        parts[n % 3].wrote("train", 4, 1, stats.of_picture((40, 30), info))
    both = []
    for order in (parts, parts[::-1]):
        both.append(Report())
        for part in order:
            both[-1].add(json.loads(json.dumps(part.as_dict())))
    assert both[0].as_dict() == both[1].as_dict()
    assert both[0].written == {"train": {"samples": 30, "captions": 120, "boxes": 30}}
    assert both[0].bins == {"caption words": {"1": 30, "2": 30, "3": 60}, "boxes": {"1": 30}, "box area": {"-2": 30},
                            "short side": {"0": 30}, "aspect": {"1": 30}}


def test_the_summary_page_shows_samples_boxes_histograms_and_what_was_left_out(tmp_path):
    phrase = "<script>alert(1)</script>"
    files = genome(tmp_path, region_descriptions=lambda r: r[0]["regions"][0].update(phrase=phrase),
                   objects=lambda r: r[0]["objects"][0].update(w=0))
    vg.convert(files["image_data"], files["region_descriptions"], tmp_path / "vg", Options(tmp_path / "out"),
               files["objects"])
    coco.convert(*karpathy(tmp_path), Options(tmp_path / "out"), {"val": "val"})
    text.convert([put(tmp_path / "a.txt", b"Call me <b>Ishmael</b>.\n")], Options(tmp_path / "out"), "lines")
    page = write_summary(tmp_path / "out").read_text()
    assert page.count("data:image/jpeg;base64,") == 4  # three of the genome, one caption picture
    assert page.count('<rect class="box') == 9 and page.count('class="bar"') > 10
    assert "left out: boxes without area" in page and "objects.json: image 9: object 900: box" in page
    assert "changed: boxes clipped" in page and "vg-train" in page and "text-lines" in page
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page and "Call me &lt;b&gt;Ishmael" in page
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", page)  # nothing is fetched
    for name in shards(tmp_path / "out"):
        (tmp_path / "out" / name).unlink()
    assert write_summary(tmp_path / "out").read_text().count("data:image") == 0  # shards may move on; the page stands
