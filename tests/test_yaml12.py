"""The YAML of a config: safe, 1.2 scalars, every value with its line, and back again unchanged."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl import yaml12
from tl.errors import UserError


def value_of(text: str) -> Any:
    return yaml12.load(text, "c.yaml")[0]


def mistake(text: str) -> str:
    with pytest.raises(UserError) as caught:
        yaml12.load(text, "c.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("1.", 1.0), ("6.02e+23", 6.02e23),
        (".inf", math.inf), ("-.Inf", -math.inf), ("1_000", 1000), ("010", 10), ("+3", 3),
        ("true", True), ("FALSE", False), ("~", None), ("null", None), ("", None),
        # What YAML 1.1 takes for booleans, base 60, octal, dates and `=` are words.
        ("no", "no"), ("off", "off"), ("y", "y"), ("1:30", "1:30"), ("0o17", "0o17"),
        ("0x1f", "0x1f"),
        ("2024-01-31", "2024-01-31"), ("=", "="), ("1_", "1_"), ("1__0", "1__0"), ("_1", "_1"),
        ("1_.5", "1_.5"), ("1.2.3", "1.2.3"), ("e5", "e5"), ("inf", "inf"), ("nan", "nan"),
        (".", "."),
        ("'1'", "1"), ('"true"', "true"), ("''", ""), ("|\n 1", "1"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, expected: Any) -> None:
    value = value_of(text)
    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_a_float() -> None:
    assert math.isnan(value_of(".nan"))


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: 2\na: 3\n", 3), ("a:\n  b: 1\n  'b': 2\n", 3), ("[{a: 1,\n a: 1}]", 2)],
)
def test_equal_keys_are_refused_with_the_line_of_the_second(text: str, line: int) -> None:
    assert mistake(text).startswith(f"c.yaml:{line}: the key ")
    assert "second time" in mistake(text)


@pytest.mark.parametrize(
    "template",
    [
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]",
        "a: !!python/object/apply:os.system ['touch {}']",
        "? !!python/object/apply:os.system ['touch {}']\n: 1",
        "!!python/object/apply:os.system 'touch {}': 1",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {}']",
    ],
)
def test_a_python_tag_is_refused_and_not_run(template: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "it-ran"
    assert mistake(template.format(sentinel)).startswith("c.yaml:1: ")
    assert not sentinel.exists()


@pytest.mark.parametrize("tag", ["!!int '3'", "!!float 1", "!!binary aGk=", "!!set {a}", "!mine 1"])
def test_a_tag_is_refused_rather_than_ignored(tag: str) -> None:
    assert "is not allowed, plain values only" in mistake(f"a: 1\nb: {tag}")
    assert mistake(f"a: 1\nb: {tag}").startswith("c.yaml:2: ")


def test_the_tag_for_text_makes_text() -> None:
    assert value_of("!!str 12") == "12"


def test_an_alias_stands_for_a_copy() -> None:
    value = value_of("a: &x {lr: 1}\nb: *x\n")
    value["b"]["lr"] = 2
    assert value == {"a": {"lr": 1}, "b": {"lr": 2}}


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: *a}", "&a [*a, *a]"])
def test_an_alias_of_itself_is_refused(text: str) -> None:
    assert "an alias of itself" in mistake(text)


def test_a_billion_laughs_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "more than 100000 values" in mistake("\n".join(lines))


@pytest.mark.parametrize("brackets", [40, 3000])
def test_deep_nesting_is_a_mistake_and_no_crash(brackets: int) -> None:
    assert "nested more than 32 deep" in mistake("[" * brackets + "]" * brackets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3", "c.yaml:3: not YAML: "),
        ("a: 1\n\tb: 2", "c.yaml:2: not YAML: "),
        ("a: 1\n---\nb: 1", "c.yaml:2: not YAML: but found another document"),
        ("a: \x00", "c.yaml: not YAML: "),
        ("a: *nobody", "c.yaml:1: not YAML: found undefined alias"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "c.yaml:3: merge keys (<<) are not supported"),
        ("? [a]\n: 1", "c.yaml:1: a key must be a word"),
        ("a: " + "1" * 5000, "c.yaml:1: a number of 5000 digits"),
    ],
)
def test_a_mistake_has_its_line(text: str, message: str) -> None:
    assert mistake(text).startswith(message)


def test_every_value_knows_its_line() -> None:
    text = "# heading\nseed: 1\noptimizer:\n  name: sgd\n  betas:\n  - 0.9\n  - 1\nrun_dir: |\n a\n"
    _, origins = yaml12.load(text, "c.yaml")
    lines = {
        (): 2, ("seed",): 2, ("optimizer",): 4, ("optimizer", "name"): 4, ("optimizer", "betas"): 6,
        ("optimizer", "betas", 0): 6, ("optimizer", "betas", 1): 7, ("run_dir",): 8,
    }  # fmt: skip
    assert origins == {path: f"c.yaml:{line}" for path, line in lines.items()}


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert value_of("\ufeffseed: 1") == {"seed": 1}


# ---------------------------------------------------------------------------- there and back again

LOOKALIKES = [
    "no", "Yes", "on", "y", "null", "~", "", " ", "true", "TRUE", "1", "-1", "010", "0o7", "0x1F",
    "1_000", "1e-3", "1e3", "1.", ".5", ".inf", "-.INF", ".nan", "1:30", "2024-01-31", "<<", "=",
    "- a", "a: b", "# c", "a #b", "&a", "*a", "!a", "%a", "@a", "`a", "'", '"', "{", "[", "}", ",",
    "?", "|", ">", "---", "...", "\n", "a\nb", "a\n", "\n a", "a\n\n\nb ", "\t", "\r\n", "\x85",
    "\u2028", "\ufeff", "\x07", "ä", "日本", "🤖", "a" * 200, "word " * 40,
]  # fmt: skip
# YAML has no surrogates.
texts = st.sampled_from(LOOKALIKES) | st.text(st.characters(exclude_categories=["Cs"]))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
    | st.sampled_from([1e-5, 1e16, 1e22, -0.0, 5e-324, math.inf, -math.inf, 2**70])
)  # fmt: skip
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)
)


def same(a: Any, b: Any) -> bool:
    """Equal, of equal types all the way down, -0.0 told from 0.0 and the order of keys kept."""
    return repr(a) == repr(b)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_dump_then_load_is_the_identity(tree: Any) -> None:
    assert same(value_of(yaml12.dump(tree)), tree)


@settings(max_examples=100, deadline=None)
@given(scalars | st.lists(scalars, max_size=5))
def test_dump_inline_is_one_line_that_loads_as_the_value(value: Any) -> None:
    text = yaml12.dump_inline(value)
    assert len(text.splitlines()) == 1
    assert same(value_of(f"key: {text}  # a comment"), {"key": value})


@pytest.mark.parametrize("text", LOOKALIKES)
def test_every_lookalike_stays_text(text: str) -> None:
    assert value_of(yaml12.dump({text: [text, {"k": text}]})) == {text: [text, {"k": text}]}


def test_a_long_list_survives() -> None:
    values = [random.Random(0).uniform(-1, 1) * 10.0**i for i in range(-200, 200)]
    assert value_of(yaml12.dump(values)) == values
