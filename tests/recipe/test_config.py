"""YAML 1.2 scalars, places, inheritance, null, overrides, the dump, and what is refused."""

import textwrap

import pytest

from xtoolkit.recipe.config import load
from xtoolkit.registry import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return str(path)
    return write


@pytest.mark.parametrize("text, value", [
    ("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("3.", 3.0), ("010", 10), ("0x1F", 31), ("0o17", 15), ("-7", -7), ("on", "on"), ("yes", "yes"),
    ("no", "no"), ("true", True), ("False", False), ("~", None), ("null", None), ("1_000", "1_000"), ("12:30", "12:30"),
    (".inf", float("inf")), ("2026-11-22", "2026-11-22"), ("'1'", "1"), ("[1, a]", [1, "a"]), ("=", "="),
])
def test_scalars_follow_yaml_1_2_in_files_and_overrides(write, text, value):
    path = write("a.yaml", f"a:\n  b: {text}\n  c: 0\n")
    assert load(path).data["a"]["b"] == value
    assert type(load(path).data["a"]["b"]) is type(value)
    assert load(path, [f"a.c={text}"]).data["a"]["c"] == value


def test_the_dump_reads_back_to_the_same_values(write):
    path = write("a.yaml", """
        a: {lr: 1e-4, name: 'on', number: '010', text: "1e-4", nothing: null, big: 1e20, list: [[a, b], [c]], empty: {}}
        text -> fusion: [x]
    """)
    config = load(path)
    again = load(write("b.yaml", config.dump()))
    assert again.data == config.data
    assert config.data["a"]["text"] == "1e-4" and config.data["a"]["lr"] == 1e-4


def test_duplicate_keys_and_bad_yaml_give_file_and_line(write):
    with pytest.raises(ConfigError, match=r"a.yaml:3: duplicate key `x` \(first at .*a.yaml:1\)"):
        load(write("a.yaml", "x: 1\ny: 2\nx: 3\n"))
    with pytest.raises(ConfigError, match=r"b.yaml:1: not YAML: .* \(in line 2\)"):
        load(write("b.yaml", "x: [1\ny: 2\n"))
    with pytest.raises(ConfigError, match="no such file|cannot be read"):
        load("/nowhere/x.yaml")


def test_tags_build_nothing(write, tmp_path):
    marker = tmp_path / "touched"
    with pytest.raises(ConfigError, match=r"a.yaml:1: tag !!python/object/apply:os.system is refused"):
        load(write("a.yaml", f"x: !!python/object/apply:os.system ['touch {marker}']\n"))
    assert not marker.exists()


def test_an_alias_bomb_is_refused(write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(ConfigError, match="expands to more than"):
        load(write("a.yaml", "\n".join(lines)))


BASE = """
    encoders:
      vision: {type: BEiTv2, inputs: {image: $image}, width: 768}
    losses:
      mim: {type: MIM, feature: vision}
      itc: {type: ITC}
    stop_gradient:
      text -> fusion: [itm, mim]
      a -> b: [mim]
    streams:
      image: {batch_size: 8, losses: {mim: 1}}
      pairs: {batch_size: 8, losses: {mim: 1, itc: 1}}
    schedule: {every_step: [[image, pairs]]}
    optim: {lr: 1, clip: 1.0, lr_mult: {mim: 2, itc: 2}}
"""


def test_mappings_merge_lists_replace_later_wins(write):
    write("base.yaml", BASE)
    write("more.yaml", "optim: {lr: 2}\nextra: {deep: {x: 1}}\n")
    config = load(write("a.yaml", """
        _BASE_: [base.yaml, more.yaml]
        schedule: {every_step: [[pairs]]}
        optim: {lr_mult: {itc: 3}}
    """))
    assert config.data["optim"] == {"lr": 2, "clip": 1.0, "lr_mult": {"mim": 2, "itc": 3}}
    assert config.data["schedule"]["every_step"] == [["pairs"]]
    assert config.where("optim", "lr").endswith("more.yaml:1")
    assert config.where("optim", "lr_mult", "itc").endswith("a.yaml:3")
    assert config.where("optim", "clip").endswith("base.yaml:13")


def test_a_changed_type_replaces_the_block_but_keeps_inputs(write):
    write("base.yaml", BASE)
    config = load(write("a.yaml", "_BASE_: base.yaml\nencoders: {vision: {type: ViT, depth: 2}}\n"))
    assert config.data["encoders"]["vision"] == {"type": "ViT", "depth": 2, "inputs": {"image": "$image"}}


def test_a_null_loss_leaves_streams_and_stop_lists_that_were_inherited(write):
    write("base.yaml", BASE)
    config = load(write("a.yaml", "_BASE_: base.yaml\nlosses: {mim: null}\nstreams: {image: null}\n"))
    assert list(config.data["losses"]) == ["itc"]
    assert list(config.data["streams"]) == ["pairs"]
    assert config.data["streams"]["pairs"]["losses"] == {"itc": 1}
    assert config.data["stop_gradient"] == {"text -> fusion": ["itm"]}
    assert config.data["optim"]["lr_mult"] == {"itc": 2}


def test_a_null_stream_leaves_the_schedule_that_was_inherited(write):
    write("base.yaml", BASE)
    config = load(write("a.yaml", "_BASE_: base.yaml\nstreams: {image: null}\n"))
    assert config.data["schedule"] == {"every_step": [["pairs"]]}


def test_a_null_loss_stays_where_the_same_file_writes_it(write):
    write("base.yaml", BASE)
    config = load(write("a.yaml", """
        _BASE_: base.yaml
        losses: {mim: null}
        streams: {pairs: {losses: {mim: 2}}}
    """))
    assert config.data["streams"]["pairs"]["losses"] == {"itc": 1, "mim": 2}  # the check reports it


def test_null_is_a_value_where_it_removes_nothing(write):
    write("base.yaml", BASE)
    config = load(write("a.yaml", "_BASE_: base.yaml\noptim: {clip: null}\n"))
    assert config.data["optim"]["clip"] is None


def test_what_a_file_removes_another_can_bring_back(write):
    write("base.yaml", BASE)
    write("without.yaml", "_BASE_: base.yaml\nlosses: {mim: null}\n")
    config = load(write("a.yaml", "_BASE_: without.yaml\nlosses: {mim: {type: MIM, feature: x}}\n"))
    assert config.data["losses"]["mim"] == {"type": "MIM", "feature": "x"}


def test_base_mistakes_are_named(write):
    with pytest.raises(ConfigError, match=r"a.yaml:1: `_BASE_` nothing.yaml: no such file"):
        load(write("a.yaml", "_BASE_: nothing.yaml\n"))
    write("base.yaml", "x: 1\n")
    with pytest.raises(ConfigError, match=r"`_BASE_` bsae.yaml: .*; did you mean `base.yaml`"):
        load(write("a.yaml", "_BASE_: bsae.yaml\n"))
    write("c.yaml", "_BASE_: d.yaml\n")
    with pytest.raises(ConfigError, match="leads back to this file"):
        load(write("d.yaml", "_BASE_: c.yaml\n"))


@pytest.mark.parametrize("text, expected", [
    ("_BASE_: 5\n", "`_BASE_` must be a path or a list of paths"), ("x: \x00\n", "not YAML"), ("x: !!int twelve\n", "`twelve` is no int"),
    ("x: &a [*a]\n", "holds itself"), ("- a\n- b\n", "a configuration is a mapping"),
])
def test_misshapen_files_are_lines_too(write, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load(write("a.yaml", text))


def test_removing_from_misshapen_bases_is_left_to_the_check(write):
    write("base.yaml", "losses: [a]\nstreams: 3\nschedule: {every_step: x}\noptim: {lr_mult: null}\n")
    assert load(write("a.yaml", "_BASE_: base.yaml\nlosses: {x: null}\nstreams: {y: null}\n")).data["schedule"] == {"every_step": "x"}


def test_null_that_removes_nothing_is_known_with_its_place(write, tmp_path):
    write("base.yaml", BASE)
    write("part.yaml", "losses: {mlm: null, mim: null}\n")
    found = load(write("a.yaml", "_BASE_: [base.yaml, part.yaml]\nlosses: {itx: null}\nstreems: null\n"), ["streams.image.losses.mmi=null", "losses.itc=null"])
    assert found.idle() == [f"{tmp_path}/a.yaml:2: `losses.itx` is null, which removes what is inherited, and nothing of that name is; did you mean `itc`?",
                            "override `streams.image.losses.mmi=null`: `streams.image.losses.mmi` is null, which removes what is inherited, and nothing of "
                            "that name is; did you mean `mim`?"]
    assert [path for path in found.absent if len(path) == 1] == [("streems",)], "of what lies on the first level the check knows what there is"
    # A part for several bases may take out what some of them have; a file alone has nothing to take out.
    assert not load(write("b.yaml", "_BASE_: [base.yaml, part.yaml]\n")).absent and load(write("part.yaml", "losses: {mlm: null}\n")).idle()
    assert not load(str(tmp_path / "base.yaml"), ["streams.*.losses.mim=null"]).absent
    assert not load(str(tmp_path / "base.yaml"), ["losses.mim=null", "streams.image.losses.mim=null", "optim.lr_mult.itc=null"]).absent, "said twice"
    assert load(str(tmp_path / "base.yaml"), ["streams.*.losses.mmi=null"]).idle()


def test_a_star_does_not_bring_back_what_was_removed(write):
    path = write("base.yaml", BASE)
    config = load(path, ["losses.mim=null", "optim.lr_mult.*=3", "streams.*.losses.*=5"])
    assert config.data["optim"]["lr_mult"] == {"itc": 3}
    assert {name: of["losses"] for name, of in config.data["streams"].items()} == {"image": {}, "pairs": {"itc": 5}}
    assert load(write("a.yaml", "_BASE_: base.yaml\nstreams: {image: null}\n"), ["streams.*.batch_size=2"]).data["streams"] == {
        "pairs": {"batch_size": 2, "losses": {"mim": 1, "itc": 1}}}


def test_overrides(write):
    path = write("base.yaml", BASE)
    config = load(path, ["streams.*.batch_size=2", "optim.lr_mult.new=0.5", "losses.itc={type: SigLIP, sim: s}", "losses.mim=null"])
    assert [s["batch_size"] for s in config.data["streams"].values()] == [2, 2]
    assert config.data["optim"]["lr_mult"] == {"itc": 2, "new": 0.5}
    assert config.data["losses"] == {"itc": {"type": "SigLIP", "sim": "s"}}
    assert config.where("streams", "image", "batch_size") == "override `streams.*.batch_size=2`"
    with pytest.raises(ConfigError, match="write key.path=value"):
        load(path, ["nonsense"])
    with pytest.raises(ConfigError, match=r"`optim.lr` is a value, not a mapping"):
        load(path, ["optim.lr.x=1"])
