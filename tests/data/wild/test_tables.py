"""Tables beside an image root: what other toolkits' users have is read as it is, and what is wrong in it is counted."""

import csv
import gzip
import io
import json
import os
import random
import re
import time
import tracemalloc
from pathlib import Path

import pytest

from xtoolkit.data import scan, tables
from xtoolkit.data.blocks import SourceBlock
from xtoolkit.data.datasets import Images, Pairs, Regions, Text
from xtoolkit.data.errors import BadSample
from xtoolkit.data.loader import Loader
from xtoolkit.data.shards import Shards
from xtoolkit.registry import ConfigError

SIZES = {"image_size": 32, "patch_size": 8}
SAID = ["a red dog", 'the "big" tree, left', "two\nlines\nof grass", "ein Bär", "a cat; a ball"]


@pytest.fixture
def root(tmp_path, shards):
    """A folder with ten pictures, ``pics/0.jpg`` to ``pics/9.jpg``."""
    (tmp_path / "pics").mkdir()
    for n in range(10):
        (tmp_path / "pics" / f"{n}.jpg").write_bytes(shards.jpeg(n))
    return tmp_path


def table(columns, rows, **how) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, **how)
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue().encode()


def lines(key, caption, prefix="pics/") -> bytes:
    return "".join(json.dumps({key: f"{prefix}{n}.jpg", caption: said}) + "\n" for n, said in enumerate(SAID)).encode()


def cells(prefix="pics/"):
    return [(f"{prefix}{n}.jpg", said) for n, said in enumerate(SAID)]


TABLES = {
    "X-VLM's JSON Lines": ("train.jsonl", lines("image", "caption")),
    "ours": ("train.jsonl", lines("image", "captions")),
    "packed": ("train.jsonl.gz", gzip.compress(lines("image", "caption"))),
    "Hugging Face, jsonl": ("pics/metadata.jsonl", lines("file_name", "text", "")),
    "Hugging Face, csv": ("pics/metadata.csv", table(("file_name", "text"), cells(""))),
    "open_clip": ("train.csv", table(("filepath", "title"), cells())),
    "open_clip, tabs": ("train.tsv", table(("filepath", "title"), cells(), delimiter="\t")),
    "columns in another order, and more": ("x.csv", table(("id", "caption", "path", "url"), [(9, c, p, "http:") for p, c in cells()])),
    "a mark and unix lines": ("x.csv", b"\xef\xbb\xbf" + table(("image", "caption"), cells(), lineterminator="\n")),
    "everything quoted": ("x.CSV", table(("filename", "caption"), cells(), quoting=csv.QUOTE_ALL)),
    "empty lines": ("x.csv", b"\r\n\r\n" + table(("image", "caption"), cells()).replace(b"\r\npics", b"\r\n\r\npics") + b"\r\n\r\n"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_read_as_they_are(kind, root, tokenizer, shards):
    name, data = TABLES[kind]
    (root / name).write_bytes(data)
    assert Pairs.missing({"path": str(root / name)}) == []
    found = Shards([str(root / name)], pictures=True)
    assert [found.meta(n)["captions"] for n in range(len(found))] == SAID and not found.damaged
    assert [found.read(n, "image") for n in range(len(found))] == [shards.jpeg(n) for n in range(len(SAID))]
    assert [found.name(n) for n in (0, 4)] == ["row 1", "row 5"]
    for path in (root / name, (root / name).parent):
        pairs = Pairs(tokenizer, **SIZES, path=str(path), clean=False, train=False)
        item = pairs.load(0, 2, 1, None)
        assert tokenizer.decode(item.texts[0].ids).split() == SAID[2].split()
        assert item.image.name == str(root / "pics/2.jpg")
        assert len(Images(**SIZES, path=str(path))) == len(SAID)


def test_pictures_of_one_name_in_folders_of_one_name_are_different_ones(tmp_path, tokenizer, shards):
    keys = set()
    for n, part in enumerate(("one", "other")):
        folder = tmp_path / part / "train"
        folder.mkdir(parents=True)
        (folder / "0001.png").write_bytes(shards.jpeg(n))
        (folder / "metadata.csv").write_text("file_name,text\n0001.png,a dog\n")
        keys.add(Pairs(tokenizer, **SIZES, path=str(folder)).load(0, 0, 1, random.Random(0)).image.key)
    assert len(keys) == 2


def test_the_folder_of_the_pictures_is_named_by_images(root, tokenizer, shards):
    (root / "lists").mkdir()
    (root / "lists" / "x.jsonl").write_bytes(lines("image", "caption", ""))
    path, pictures = str(root / "lists" / "x.jsonl"), str(root / "pics")
    (_, line), = Images.missing({"path": path})
    assert line == (f"{path}: none of its first pictures is there, such as {root}/lists/0.jpg: `images` names the folder that "
                    "they lie in")
    (root / "more").mkdir()
    (root / "more" / "0.jpg").write_bytes(shards.jpeg(77))
    both = Images(**SIZES, images=pictures, sources={"a": SourceBlock(path), "b": SourceBlock(path, images=str(root / "more"))})
    first = [both.load(source, 0, 1, random.Random(0)).image.pixels.mean() for source in (0, 1)]
    assert first[0] != first[1]
    with pytest.raises(BadSample, match="x.jsonl: missing picture: row 2: 1.jpg below .*more: No such file"):
        both.load(1, 1, 1, random.Random(0))
    (root / "urls.csv").write_text("image,caption\nhttps://h/a.jpg,a\nhttp://h/b.jpg,b\n")
    assert "its pictures are URLs, such as https://h/a.jpg: download them" in Images.missing({"path": str(root / "urls.csv")})[0][1]
    assert Images.missing({"path": path, "images": pictures}) == []
    nowhere = str(root / "nowhere")
    told = f"{nowhere}: no such folder; `images` names the one that has the pictures"
    assert Images.missing({"path": path, "images": nowhere}) == [("images", told)]
    assert Pairs.missing({"sources": {"a": {"path": path, "images": nowhere}, "b": None}}) == [("sources.a.images", told)]
    with pytest.raises(ConfigError, match="data.images: .*no such folder"):
        Pairs(tokenizer, **SIZES, path=path, images=nowhere)


HEADS = {
    "no picture": ("x.csv", b"url,caption\nhttp://h/a.jpg,a\n", "the header row: it has no picture, one of image, file_name, filepath, "
                   r"path, filename, img, only url, caption. Pairs reads rows such as {\"image\": \"a/b.jpg\", \"caption\": \"a dog\"}"),
    "no caption": ("x.csv", b"image,label\na.jpg,3\n", "it has no caption, one of captions, caption, text, title, only image, label"),
    "two pictures": ("x.tsv", b"image\tpath\tcaption\na\tb\tc\n", "it has `image` and `path`, and one must be meant: rename the others"),
    "two captions": ("x.jsonl", b'{"image": "a", "text": "b", "title": "c"}', "the first row: it has `text` and `title`, and one"),
    "one column twice": ("x.csv", b"image,caption,caption\na,b,c\n", "it has `caption` twice"),
    "no header": ("x.csv", b"pics/0.jpg,a dog\npics/1.jpg,a cat\n", "it has no picture, .*only pics/0.jpg, a dog"),
    "tabs in a csv": ("x.csv", b"image\tcaption\na\tb\n", r"it has no picture, .*only image caption: its cells are apart by '\\t', and "
                      "those of a .csv by ','; `xtoolkit prepare table` reads both"),
    "semicolons": ("x.csv", b"image;caption\na;b\n", "only image;caption: its cells are apart by ';', .*`xtoolkit prepare table`"),
    "commas in a tsv": ("x.tsv", b"image,caption\na,b\n", r"its cells are apart by ',', and those of a .tsv by '\\t'"),
    "a space": ("x.csv", b"image, caption\npics/0.jpg, a dog\n", "it has no caption, .*; did you mean `caption` by ' caption'\\?"),
    "a capital": ("x.jsonl", b'{"Image": "pics/0.jpg", "caption": "a dog"}', "it has no picture, .*; did you mean `image` by 'Image'\\?"),
    "latin-1": ("x.csv", "image,Übersetzung\n".encode("latin-1"), "not UTF-8: byte 0xdc at 6; convert it"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_table_without_its_columns_is_one_line(case, root):
    name, data, told = HEADS[case]
    (root / name).write_bytes(data)
    (key, line), = Pairs.missing({"path": str(root / name)})
    assert line.startswith(f"{root / name}: ") and "\n" not in line and re.search(told, line), line


BAD = {
    "missing": ("pics/99.jpg,a dog", "missing picture: row 2: pics/99.jpg below"),
    "no name": (",a dog", "missing picture: row 2: the row names none"),
    "a folder": ("pics,a dog", "refused picture: row 2: pics is no file"),
    "out of the root": ("../secret.jpg,a dog", "refused picture: row 2: ../secret.jpg leads out of .*`images` names the folder"),
    "absolute": ("/etc/hostname,a dog", "refused picture: row 2: /etc/hostname leads out"),
    "a link out": ("link.jpg,a dog", "refused picture: row 2: link.jpg leads out"),
    "a pipe": ("pipe.jpg,a dog", "refused picture: row 2: pipe.jpg is no file"),
    "a NUL": ("a\0b.jpg,a dog", "not utf-8: row 2: a NUL at 1"),
    "a long name": ("a" * 5000 + ",a dog", "missing picture: row 2: a+ below .*too long"),
    "too few cells": ("pics/1.jpg", "broken row: row 2: 1 cells, and the header row has 2"),
    "too many": ("pics/1.jpg,a dog, a cat", "broken row: row 2: 3 cells, and the header row has 2"),
    "no caption": ("pics/1.jpg,", "empty caption: row 2: no caption"),
    "blanks": ("pics/1.jpg,  ", "empty caption: row 2: no token is left"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_row_is_one_bad_sample(case, root, tokenizer):
    row, told = BAD[case]
    (root / "secret.jpg").write_bytes(b"secret")
    folder = root / "data"
    folder.mkdir()
    (root / "pics").rename(folder / "pics")
    (folder / "link.jpg").symlink_to(root / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "x.csv").write_text(f"image,caption\npics/0.jpg,a dog\n{row}\npics/2.jpg,a cat\n")
    pairs = Pairs(tokenizer, **SIZES, path=str(folder / "x.csv"))
    with pytest.raises(BadSample, match=told) as caught:
        pairs.load(0, 1, 1, random.Random(0))
    assert caught.value.path == str(folder / "x.csv") and "\n" not in str(caught.value)
    assert all(pairs.load(0, n, 1, random.Random(0)).image is not None for n in (0, 2))


def test_pictures_that_all_lead_out_are_found_before_anything_loads(root, tmp_path):
    """As in a snapshot of a hub, whose pictures are links to its blobs; and absolute paths outside the folder."""
    snapshot = tmp_path / "hub" / "snapshots" / "1"
    (snapshot / "pics").mkdir(parents=True)
    (tmp_path / "hub" / "blobs").symlink_to(root / "pics")
    (snapshot / "pics" / "0.jpg").symlink_to("../../../blobs/0.jpg")
    table = snapshot / "x.csv"
    for name, mend in (("pics/0.jpg", "through a link: `xtoolkit prepare table` follows it"),
                       (f"{root}/pics/0.jpg", "`images` names the folder of the pictures")):
        table.write_text(f"image,caption\n{name},a dog\nnone.jpg,a cat\n")
        assert Pairs.missing({"path": str(table)}) == [
            ("path", f"{table}: its pictures are refused: {name} leads out of {snapshot}; {mend}")]
    assert Pairs.missing({"path": str(table), "images": str(root)}) == []


def test_links_within_the_root_and_absolute_paths_into_it_are_followed(root, tokenizer):
    (root / "alias.jpg").symlink_to(root / "pics" / "3.jpg")
    (root / "x.csv").write_text(f"image,caption\nalias.jpg,a dog\n{root}/pics/1.jpg,a cat\n./pics/../pics/2.jpg,a tree\n")
    pairs = Pairs(tokenizer, **SIZES, path=str(root / "x.csv"))
    assert [pairs.load(0, n, 1, random.Random(0)).image is not None for n in range(3)] == [True] * 3


def test_bad_rows_are_replaced_and_counted_by_kind(root, tokenizer):
    rows = [f"pics/{n}.jpg,a dog {n}" for n in range(8)] + ["pics/77.jpg,a cat", "../a.jpg,a cat", "pics/1.jpg", "pics/1.jpg,"]
    (root / "x.csv").write_text("\n".join(["image,caption", *rows]))
    loader = Loader("pairs", Pairs(tokenizer, **SIZES, path=str(root / "x.csv")), 4, 1, 0, max_bad=1)
    for visit in range(12):
        loader.at(visit)
    assert set(loader.report()["bad"]) == {"missing picture", "refused picture", "broken row", "empty caption"}


def test_numbers_as_captions(root, tokenizer):
    (root / "x.csv").write_text("image,caption\npics/0.jpg,12\npics/1.jpg,NaN\n")
    (root / "x.jsonl").write_text('{"image": "pics/0.jpg", "caption": 12}\n{"image": "pics/0.jpg", "caption": NaN}\n'
                                  '{"image": "pics/0.jpg", "caption": [null, "a dog"]}\n{"image": 5, "caption": "x"}\n')
    assert [Shards([str(root / "x.csv")]).meta(n)["captions"] for n in (0, 1)] == ["12", "NaN"]
    pairs = Pairs(tokenizer, **SIZES, path=str(root / "x.jsonl"))
    for n, told in ((0, "empty caption: row 1: captions must be strings, not 12"), (1, "captions must be strings, not nan"),
                    (3, "missing picture: row 4: the row names none: 5")):
        with pytest.raises(BadSample, match=told):
            pairs.load(0, n, 1, random.Random(0))
    assert pairs.load(0, 2, 1, random.Random(0)).texts


def test_broken_lines_of_json(root, tokenizer):
    rows = [b'{"image": "pics/0.jpg", "caption": "a dog"}', b'{"image": "pics/0', b"[1]", b'{"image": "a", "path": "b", "caption": "c"}',
            '{"image": "pics/0.jpg", "caption": "café"}'.encode("latin-1")]
    (root / "x.jsonl").write_bytes(b"\n".join(rows))
    pairs = Pairs(tokenizer, **SIZES, path=str(root / "x.jsonl"))
    for n, told in enumerate(("broken json: row 2", "broken json: row 3: an object", "broken row: row 4: it has `image` and `path`",
                              "not utf-8: row 5: not UTF-8: byte 0xe9"), 1):
        with pytest.raises(BadSample, match=told):
            pairs.load(0, n, 1, random.Random(0))


@pytest.mark.parametrize("between, said", [
    ('"a tree\npics/2.jpg,a cat\n', ["a dog", None, "a cat"]), ('"a tree', ["a dog", None]),
    ('"5 inch tv\npics/2.jpg,a cat\npics/3.jpg,"red"\n', ["a dog", None, "a cat", "red"]),
    ('"5 inch\n' + "pics/2.jpg,a cat\n" * 3 + 'pics/3.jpg,screen"\n', ["a dog", None, *["a cat"] * 3, 'screen"']),
    ('a\rtree\npics/2.jpg,a cat\n', ["a dog", None, "a cat"]),
    ('"5" pipe\npics/2.jpg,a cat\n', ["a dog", None, "a cat"]),
    ('"one\ntwo, three\nfour"\npics/2.jpg,a cat\n', ["a dog", "one\ntwo, three\nfour", "a cat"])])
def test_a_quote_that_is_left_open_breaks_its_row_alone(between, said, root):
    (root / "x.csv").write_text("image,caption\npics/0.jpg,a dog\npics/1.jpg," + between, newline="")
    found = Shards([str(root / "x.csv")])
    assert len(found) == len(said) and not found.damaged
    for row, caption in enumerate(said):
        if caption is None:
            with pytest.raises(BadSample, match="broken row"):
                found.meta(row)
        else:
            assert found.meta(row)["captions"] == caption


def test_rows_that_all_leave_a_quote_open_take_no_time(root):
    (root / "x.csv").write_text("image,caption\n" + "".join(f'pics/0.jpg,"a dog {n}\n' for n in range(20_000)))
    began = time.process_time()
    assert len(Shards([str(root / "x.csv")])) == 20_000 and time.process_time() - began < 5


def test_quotes_inside_a_cell_open_nothing(root):
    (root / "x.tsv").write_text('image\tcaption\npics/0.jpg\ta 5" pipe\npics/1.jpg\tsaid "no"\n')
    found = Shards([str(root / "x.tsv")])
    assert [found.meta(n)["captions"] for n in (0, 1)] == ['a 5" pipe', 'said "no"']


def test_regions_in_json_lines(root, tokenizer):
    rows = [{"image": "pics/0.jpg", "regions": [{"box": [1, 1, 20, 20], "caption": "a dog"}, {"box": [2, 2, 9, 9], "caption": "a cat"}]},
            {"image": "pics/1.jpg", "regions": [{"box": [1, 1, 20, 20], "caption": "a tree"}], "caption": "the whole"},
            {"image": "pics/2.jpg", "caption": "only the whole"}]
    (root / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = Shards([str(root / "x.jsonl")], pictures=True)
    assert found.column("elements").tolist() == [2, 2, 1]
    regions = Regions(tokenizer, **SIZES, path=str(root / "x.jsonl"))
    assert [len(regions.load(0, n, 5, random.Random(0)).boxes) for n in range(3)] == [2, 2, 1]
    assert Loader("region", regions, 6, 1, 0).at(0).region.box.shape == (6, 4)


def test_texts_of_a_table(root, tokenizer):
    (root / "x.csv").write_bytes(table(("id", "text"), [(n, said) for n, said in enumerate(SAID)]))
    data = Text(tokenizer, path=str(root / "x.csv"))
    found = [tokenizer.decode(data.load(0, n, 1, None).texts[0].ids).split() for n in range(len(data))]
    assert found == [said.split() for said in SAID]
    Loader("text", data, 4, 1, 0).at(0)


def test_one_file_of_lines_for_texts_and_for_pairs_at_once(root, tokenizer):
    (root / "x.jsonl").write_text('{"image": "pics/0.jpg", "text": "a dog"}\n' * 3)
    texts, pairs = Text(tokenizer, path=str(root / "x.jsonl")), Pairs(tokenizer, **SIZES, path=str(root / "x.jsonl"))
    assert texts.load(0, 2, 1, None).texts and pairs.load(0, 2, 1, random.Random(0)).image is not None
    assert sorted(p.name for p in root.glob("*.idx")) == ["x.jsonl.idx", "x.jsonl.rows.idx"]


def test_a_long_table_is_not_held_in_memory(root):
    with open(root / "x.csv", "w") as f:
        f.write("image,caption\n")
        for n in range(60_000):
            f.write(f'pics/{n % 10}.jpg,"a dog\nof number {n}"\n')
    tracemalloc.start()
    found = Shards([str(root / "x.csv")])
    found = Shards([str(root / "x.csv")])
    tracemalloc.reset_peak()
    assert len(found) == 60_000 and found.meta(54_321)["captions"] == "a dog\nof number 54321"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert os.path.getsize(root / "x.csv.idx") < 60_000 * 14 + scan.UNPACK


# ---- the page --------------------------------------------------------------------------------------------------------
PAGE = (Path(__file__).resolve().parents[3] / "docs/data.md").read_text()
EXAMPLES = dict(re.findall(r"```(?:jsonl|csv|tsv) (\S+)\n(.*?)```", PAGE, re.S))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_tables_of_the_page_are_read(name, tmp_path, tokenizer, shards):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(EXAMPLES[name])
    found = Shards([str(tmp_path / name)], pictures=True)
    for n in range(len(found)):
        picture = (tmp_path / name).parent / found.meta(n)["image"]
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(shards.jpeg(n))
    stream = Regions if "regions" in name else Pairs
    for path in {tmp_path / name, (tmp_path / name).parent}:
        data = stream(tokenizer, **SIZES, path=str(path), train=False)
        assert len(data) == len(found) > 0
        assert all(data.load(0, n, 1, random.Random(0)).texts for n in range(len(data)))


def test_the_page_has_an_example_of_every_table_and_names_all_columns():
    assert len(EXAMPLES) == 6 and {name.rpartition(".")[2] for name in EXAMPLES} == {"jsonl", "csv", "tsv"}
    assert all(f"`{name}`" in PAGE for name in (*tables.PICTURE, *tables.CAPTIONS))
