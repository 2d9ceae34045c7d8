"""Folders of tokenizers as damage leaves them: one line that names the file and says what to do, never other ids."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tokenizers

from xtoolkit.data.text import load_tokenizer
from xtoolkit.registry import ConfigError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4f1a\nsize 1355863\n"
TEXT = "a red dog, two cats"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A byte-level BPE's tokenizer.json, vocab.json and merges.txt, by name."""
    folder = tmp_path_factory.mktemp("whole")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a red dog and two cats"] * 9, vocab_size=277, min_frequency=2, show_progress=False,
                            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(folder))
    bpe.save(str(folder / "tokenizer.json"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def written(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def pair(whole, **changed):
    return {name: changed.get(name.partition(".")[0], whole[name]) for name in ("vocab.json", "merges.txt")}


def edited(data, edit):
    value = json.loads(data)
    edit(value)
    return json.dumps(value).encode()


def test_a_mark_or_windows_line_ends_change_no_id(whole, tmp_path):
    expected = load_tokenizer(str(written(tmp_path / "0", {"tokenizer.json": whole["tokenizer.json"]}))).encode(TEXT)
    mark = b"\xef\xbb\xbf"
    for n, files in enumerate([
            pair(whole), pair(whole, vocab=mark + whole["vocab.json"], merges=mark + whole["merges.txt"]),
            pair(whole, merges=whole["merges.txt"].replace(b"\n", b"\r\n")),
            {"tokenizer.json": mark + whole["tokenizer.json"]}]):
        assert load_tokenizer(str(written(tmp_path / f"x{n}", files))).encode(TEXT) == expected, n
    assert len(expected) < len(TEXT) / 2, "merges are used, or this shows nothing"


@pytest.mark.parametrize("damage, said", [
    (lambda data: data[:700], r"tokenizer.json: not a whole tokenizer \(.*: line \d+ column \d+ .*\); fetch the file again$"),
    (lambda data: POINTER, "tokenizer.json: it is a git-lfs pointer, not the file itself: run `git lfs pull`; fetch the file again$"),
    (lambda data: b"", "tokenizer.json: it is empty; fetch the file again$"),
    (lambda data: b"{}", r"tokenizer.json: not a whole tokenizer \('model'\)"),
    (lambda data: b"<html>404</html>", r"tokenizer.json: not a whole tokenizer \(Expecting value"),
    (lambda data: data.decode().encode("utf-16"), "tokenizer.json: not UTF-8: byte 0xff at 0; it is UTF-16; convert it"),
    (lambda data: data.replace(b"<mask>", b"<\xe9>"), "tokenizer.json: not UTF-8: byte 0xe9 at"),
    (lambda data: edited(data, lambda d: d["model"].update(vocab={})), "json: not a whole tokenizer .*out of vocabulary"),
    (lambda data: edited(data, lambda d: d["model"].update(merges=[])), "json: its merges make none of 16 tokens, such as"),
    (lambda data: edited(data, lambda d: d["model"]["vocab"].update(zz=900)), "json: of 278 tokens none has id 277: the ids"),
    (lambda data: edited(data, lambda d: d["model"]["vocab"].update(zz=7)), "json: of 278 tokens none has id 277: the ids"),
], ids=["cut", "pointer", "empty", "of nothing", "html", "utf-16", "latin-1", "no vocabulary", "no merges", "a hole",
        "an id twice"])
def test_a_damaged_tokenizer_json_is_one_line(whole, tmp_path, damage, said):
    folder = written(tmp_path / "words", {"tokenizer.json": damage(whole["tokenizer.json"])})
    for name in (folder, folder / "tokenizer.json"):
        with pytest.raises(ConfigError, match=said) as e:
            load_tokenizer(str(name))
        assert str(folder) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("changed, said", [
    ({"merges": b""}, "merges.txt: it is empty; fetch the file again$"),
    ({"merges": b"#version: 0.2\n"}, "merges.txt: it makes none of 16 tokens of vocab.json, such as `.*`; fetch the file again$"),
    ({"merges": POINTER}, "merges.txt: it is a git-lfs pointer, not the file itself: run `git lfs pull`"),
    ({"merges": b"#version: 0.2\nq z\n"}, "merges.txt: `q z` is no merge of two tokens of vocab.json"),
    ({"merges": -4}, "merges.txt: "), ({"merges": -9}, "merges.txt: "), ({"merges": -20}, "merges.txt: "),
    ({"vocab": b""}, "vocab.json: it is empty"), ({"vocab": POINTER}, "vocab.json: it is a git-lfs pointer"),
    ({"vocab": b"{}"}, "merges.txt: `.*` is no merge of two tokens of vocab.json"),
    ({"vocab": b"[1]"}, "vocab.json: not a whole vocabulary"), ({"vocab": -20}, "vocab.json: not a whole vocabulary"),
    ({"vocab": lambda d: d.update(zz=300)}, "vocab.json: of 278 tokens none has id 277: the ids must be 0 to 277, each once"),
    ({"vocab": lambda d: d.update(zz=7)}, "vocab.json: of 278 tokens none has id 277"),
    ({"vocab": lambda d: d.update(a="66")}, "vocab.json: of 277 tokens none has id"),
    ({"vocab": lambda d: d.update(zz=277)}, "merges.txt: it makes none of 1 tokens of vocab.json, such as `zz`"),
], ids=["no merges", "only a version", "a pointer", "of another vocabulary", "cut in a line", "cut after a character",
        "cut before", "no vocabulary", "vocabulary a pointer", "empty vocabulary", "a list", "cut vocabulary", "a hole",
        "an id twice", "an id as text", "a token of no merge"])
def test_a_damaged_pair_is_one_line(whole, tmp_path, changed, said):
    (part, damage), = changed.items()
    data = next(data for name, data in whole.items() if name.startswith(part))
    damaged = damage if isinstance(damage, bytes) else data[:damage] if isinstance(damage, int) else edited(data, damage)
    folder = written(tmp_path / "words", pair(whole, **{part: damaged}))
    with pytest.raises(ConfigError, match=said) as e:
        load_tokenizer(str(folder))
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


def test_every_cut_of_the_merges_is_seen(whole, tmp_path):
    data = whole["merges.txt"]
    for end in range(len(data) - 1):  # without its last line's end it is still whole
        folder = written(tmp_path / "words", pair(whole, merges=data[:end]))
        with pytest.raises(ConfigError, match="merges.txt: ") as e:
            load_tokenizer(str(folder))
        assert "\n" not in str(e.value)


def test_a_folder_that_lacks_files_says_which_and_how_they_are_made(whole, tmp_path):
    said = r"the folder has neither tokenizer.json nor vocab.json and merges.txt; write them by `AutoTokenizer.from_pretrained"
    for n, names in enumerate([["tokenizer_config.json"], ["vocab.json"], ["merges.txt"]]):
        with pytest.raises(ConfigError, match=said):
            load_tokenizer(str(written(tmp_path / str(n), {name: whole.get(name, b"{}") for name in names})))
    (tmp_path / "dangling").mkdir()
    os.symlink("../../blobs/none", tmp_path / "dangling/tokenizer.json")  # of a hub's cache that was cleared by hand
    with pytest.raises(ConfigError, match="dangling/tokenizer.json: No such file or directory; fetch the file again"):
        load_tokenizer(str(tmp_path / "dangling"))


CONFIG = {"tokenizer_config.json": b'{"tokenizer_class": "RobertaTokenizer"}', "config.json": b'{"model_type": "roberta"}'}


def test_names_of_the_hub_are_held_against_the_same_rules(whole, tmp_path):
    """A cache as the hub's library keeps it; in a process of its own, which has read where the cache is."""
    cached = {
        "whole": {"tokenizer.json": whole["tokenizer.json"]}, "pair": pair(whole),
        "cut": {"tokenizer.json": whole["tokenizer.json"][:700]}, "pointer": {"tokenizer.json": POINTER},
        "no-merges": pair(whole, merges=b""), "fewer": pair(whole, merges=whole["merges.txt"][:-9]), "only": {}}
    for name, files in cached.items():
        home = tmp_path / f"hub/models--me--{name}"
        written(home / "refs", {"main": b"0" * 40})
        written(home / "snapshots" / ("0" * 40), CONFIG | files)
    script = ("import sys\nfrom xtoolkit.data.text import load_tokenizer\nfrom xtoolkit.registry import ConfigError\n"
              "for name in sys.argv[2:]:\n    try:\n        print(load_tokenizer('me/' + name).encode(sys.argv[1]))\n"
              "    except ConfigError as e:\n        print(e)\n")
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-c", script, TEXT, *cached, "nowhere"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(zip([*cached, "nowhere"], done.stdout.splitlines(), strict=True))
    assert json.loads(said["whole"]) == load_tokenizer(str(written(tmp_path / "w", pair(whole)))).encode(TEXT)
    assert said["pair"] == said["whole"]
    for name, part in (("cut", "tokenizer.json: not a whole tokenizer ("), ("pointer", "tokenizer.json: it is a git-lfs pointer"),
                       ("no-merges", "merges.txt: it is empty"), ("fewer", "merges.txt: "),
                       ("only", "tokenizer `me/only` has no token but its specials: the file of its vocabulary is missing"),
                       ("nowhere", "tokenizer `me/nowhere`: neither a folder nor known to the hub from here")):
        assert part in said[name]


def test_a_name_whose_tokenizer_is_in_the_cache_asks_nobody(whole, tmp_path):
    """Nor does it take the seconds that transformers needs; without its config.json, which it would look for at the hub."""
    home = tmp_path / "hub/models--me--alone"
    written(home / "refs", {"main": b"0" * 40})
    written(home / "snapshots" / ("0" * 40), {"tokenizer.json": whole["tokenizer.json"]})
    script = ("import socket, sys\nfrom xtoolkit.data.text import load_tokenizer\n"
              "socket.socket.connect = socket.getaddrinfo = lambda *given: sys.exit(f'asked {given}')\n"
              "print(load_tokenizer('me/alone').encode(sys.argv[1]))\nassert 'transformers' not in sys.modules\n")
    env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | {"HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", script, TEXT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == load_tokenizer(str(written(tmp_path / "w", pair(whole)))).encode(TEXT)


def test_a_folder_saved_by_transformers_is_read_and_its_damage_named(whole, tmp_path):
    from transformers import AutoTokenizer
    AutoTokenizer.from_pretrained(str(written(tmp_path / "made", CONFIG | pair(whole)))).save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert saved.encode(TEXT) == load_tokenizer(str(written(tmp_path / "pair", pair(whole)))).encode(TEXT)
    shutil.copytree(tmp_path / "saved", tmp_path / "cut")
    file = tmp_path / "cut/tokenizer.json"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"cut/tokenizer.json: not a whole tokenizer \("):
        load_tokenizer(str(tmp_path / "cut"))
