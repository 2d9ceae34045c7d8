"""Registration, and holding a block against a signature."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pytest

from xtoolkit.registry import (
    ConfigError, Count, Dropout, NotNegative, Positive, Range, Registry, Share, check, filled, fits, not_numbers, schema,
)


@pytest.fixture
def registry():
    return Registry("LOSS")


def test_register_works_bare_called_and_named_and_returns_the_class(registry):
    @registry.register
    class Bare:
        pass

    @registry.register()
    class Called:
        pass

    @registry.register(name="other")
    class Named:
        pass

    class Plain:
        pass

    assert registry.register(Plain) is Plain
    assert isinstance(Bare, type) and isinstance(Called, type) and isinstance(Named, type)
    assert registry.names() == ["Bare", "Called", "Plain", "other"]


def test_a_name_is_taken_once(registry):
    registry.register(type("A", (), {}))
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(type("A", (), {}))


class Thing:
    def __init__(self, feature: str, width: int = 8, rate: float = 0.1, mode: Literal["a", "b"] = "a",
                 size: tuple[int, int] | None = None, widths: dict = None):
        self.args = (feature, width, rate, mode, size, widths)


def test_build_passes_keys_and_what_the_toolkit_gives(registry):
    registry.register(Thing)
    built = registry.build({"type": "Thing", "feature": "x", "size": [1, 2]}, "here", widths={"x": 3}, tokenizer="unasked")
    assert built.args == ("x", 8, 0.1, "a", [1, 2], {"x": 3})


def test_every_mistake_of_a_block_is_in_one_answer(registry):
    registry.register(Thing)
    with pytest.raises(ConfigError) as e:
        registry.build({"type": "Thing", "widht": 3, "rate": "fast", "mode": "c"}, "f.yaml:3")
    text = str(e.value)
    assert len(e.value.problems) == 4
    assert "f.yaml:3: unknown key `widht` of Thing; did you mean `width`?" in text
    assert "`rate` of Thing must be a number, not 'fast' (str)" in text
    assert "`mode` of Thing must be one of a, b, not 'c'" in text
    assert "missing key `feature` of Thing" in text


def test_what_the_toolkit_gives_is_not_a_key():
    assert "widths" not in schema(Thing)
    assert "unknown key `widths`" in check(Thing, {"feature": "x", "widths": {}}, "w")[0]


def test_an_unknown_component_names_the_nearest(registry):
    registry.register(Thing)
    with pytest.raises(ConfigError, match="f.yaml:1: unknown loss `Thnig`; did you mean `Thing`?"):
        registry.build({"type": "Thnig"}, "f.yaml:1")


def test_a_signature_that_swallows_typos_is_refused():
    class Swallows:
        def __init__(self, **kwargs):
            pass

    with pytest.raises(ConfigError, match=r"takes \*\*kwargs: every key must be named.*test_registry.py:\d+"):
        schema(Swallows)


def test_the_toolkits_own_keys_are_among_the_words_that_were_meant():
    assert check(Thing, {"feature": "x", "evry": 4}, "w", beside=frozenset({"type", "every"})) == [
        "w: unknown key `evry` of Thing; did you mean `every`?"]


def test_a_key_that_is_emptied_is_missing_where_it_was_emptied():
    assert check(Thing, {"feature": None}, "w", lambda *keys: ".".join(keys))[0].startswith("feature: missing key `feature`")


@pytest.mark.parametrize("value, hint, expected", [
    (1, float, True), (True, int, False), (True, float, False), (1.5, int, False), ("x", str, True), (None, int | None, True),
    (None, int, False), ([1, 2], list[int], True), ([1, "a"], list[int], False), ([0.9, 0.98], tuple[float, float], True),
    ([0.9], tuple[float, float], False), ({"a": 1}, dict[str, float], True), ({"a": "b"}, dict[str, float], False),
    ("1", int | str, True), ([["a"]], list[list[str]], True), (0, Literal["a", 0], True), (False, Literal["a", 0], False),
])
def test_types(value, hint, expected):
    assert fits(value, hint) is expected


@dataclass(frozen=True)
class Inner:
    EXAMPLE: ClassVar[str] = "{prob: 0.5}"

    prob: Share
    most: Count = 3
    words: list[str] | None = None

    def problems(self):
        return [("most", f"must be below 9 where prob is 1, not {self.most}")] if self.prob == 1 and self.most >= 9 else []


class Outer:
    def __init__(self, inner: Inner | None = None, several: dict[str, Inner] | None = None, rate: Positive = 1.0,
                 each: dict[str, NotNegative] = None, pair: tuple[Dropout, Dropout] = (0, 0),
                 top: Annotated[int, Range(high=4)] | None = None):
        self.args = (inner, several, rate, each, pair, top)


def places(*keys):
    return "f.yaml:" + ".".join(map(str, keys))


@pytest.mark.parametrize("block, said", [
    ({"inner": {"prob": 0.5, "mots": 2}}, "f.yaml:inner.mots: unknown key `mots` of `inner` of Outer; did you mean `most`?"),
    ({"inner": {"prob": "half"}}, "f.yaml:inner.prob: `inner.prob` of Outer must be a number of at least 0 and at most 1, "
                                  "not 'half' (str)"),
    ({"inner": {"prob": 2}}, "f.yaml:inner.prob: `inner.prob` of Outer must be a number of at least 0 and at most 1, not 2"),
    ({"inner": {}}, "f.yaml:inner: missing key `prob` of `inner` of Outer (a number of at least 0 and at most 1)"),
    ({"inner": {"prob": 1, "most": 9}}, "f.yaml:inner.most: `inner.most` of Outer must be below 9 where prob is 1, not 9"),
    ({"inner": 3}, "f.yaml:inner: `inner` of Outer must be a mapping with prob, most, words or null, not 3 (int)"),
    ({"several": {"a": {"prob": 3}}}, "f.yaml:several.a.prob: `several.a.prob` of Outer must be a number of at least 0 and "
                                      "at most 1, not 3"),
    ({"several": {"a": 3}}, "f.yaml:several.a: `several.a` of Outer must be a mapping with prob, most, words, not 3 (int)"),
    ({"several": [1]}, "f.yaml:several: `several` of Outer must be a mapping of names, each a mapping with prob, most, words "
                       "or null, not [1] (list)"),
    ({"rate": 0}, "f.yaml:rate: `rate` of Outer must be a number above 0, not 0"),
    ({"each": {"x": -1}}, "f.yaml:each.x: `each.x` of Outer must be a number of at least 0, not -1"),
    ({"pair": [0.5, 1]}, "f.yaml:pair: `pair` of Outer must be a list of 2 numbers of at least 0 and below 1, not [0.5, 1]"),
    ({"top": 5}, "f.yaml:top: `top` of Outer must be an integer of at most 4 or null, not 5"),
])
def test_nested_blocks_and_ranges_are_held_key_by_key(block, said):
    assert check(Outer, block, "f.yaml", places) == [said]


def test_nested_blocks_arrive_as_their_dataclass(registry):
    registry.register(Outer)
    block = {"type": "Outer", "inner": {"prob": 0.5, "most": None}, "several": {"a": {"prob": 1}, "gone": None}}
    inner, several, *_ = registry.build(block, "here").args
    assert inner == Inner(0.5) and several == {"a": Inner(1)}
    assert registry.build({"type": "Outer", "inner": inner}, "here").args[0] is inner, "from Python as it is"


def test_numbers_that_are_none_are_refused(registry):
    registry.register(Outer)
    block = {"type": "Outer", "rate": float("nan"), "inner": {"prob": float("inf")}, "pair": [0.1, float("-inf")]}
    assert not_numbers(block, places) == [
        "f.yaml:rate: `rate` must be a finite number, not nan", "f.yaml:inner.prob: `inner.prob` must be a finite number, not inf",
        "f.yaml:pair.1: `pair.1` must be a finite number, not -inf"]
    with pytest.raises(ConfigError, match="here: `rate` must be a finite number, not nan"):
        registry.build(block, "here")


def test_a_block_is_filled_with_what_its_class_would_be_built_with(registry):
    @registry.register
    class Kept:
        def __init__(self, must: str, other: str, rate: float = 0.5, name: str | None = "x", inner: Inner | None = None):
            self.got = {"must": must, "other": other, "rate": rate, "name": name, "inner": inner}

    block = {"type": "Kept", "must": "a", "rate": None, "name": None, "inner": {"prob": 1}}
    found = filled(Kept, block)
    assert found == {"must": "a", "rate": 0.5, "name": None, "inner": {"prob": 1}}, "`other` is missing, and nothing stands for it"
    built = registry.build(block | {"other": "b"}, "here").got
    assert built == found | {"other": "b", "inner": Inner(1)}
