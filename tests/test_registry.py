"""Registration, and holding a block against a signature."""

from typing import Literal

import pytest

from xtoolkit.registry import ConfigError, Registry, check, fits, schema


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

    with pytest.raises(TypeError, match="every key must be named"):
        schema(Swallows)


@pytest.mark.parametrize("value, hint, expected", [
    (1, float, True), (True, int, False), (True, float, False), (1.5, int, False), ("x", str, True), (None, int | None, True),
    (None, int, False), ([1, 2], list[int], True), ([1, "a"], list[int], False), ([0.9, 0.98], tuple[float, float], True),
    ([0.9], tuple[float, float], False), ({"a": 1}, dict[str, float], True), ({"a": "b"}, dict[str, float], False),
    ("1", int | str, True), ([["a"]], list[list[str]], True), (0, Literal["a", 0], True), (False, Literal["a", 0], False),
])
def test_types(value, hint, expected):
    assert fits(value, hint) is expected
