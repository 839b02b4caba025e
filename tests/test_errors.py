"""The nearest valid name, and an error that says all of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.errors import OnOneProcessError, UserError, brief, did_you_mean, printable, unknown


@pytest.mark.parametrize(
    ("given_name", "nearest"),
    [("resnet81", "resnet18"), ("ResNet18", "resnet18"), ("cosin", "cosine"), ("haed", "head")],
)
def test_the_nearest_name_is_offered(given_name: str, nearest: str) -> None:
    names = ["resnet18", "vgg11", "cosine", "head", "full"]
    assert did_you_mean(given_name, names) == f" Did you mean {nearest!r}?"


def test_a_name_that_is_near_to_none_gets_no_offer() -> None:
    assert did_you_mean("zzz", ["resnet18", "vgg11"]) == ""
    assert did_you_mean("a", []) == ""


@given(st.sets(st.text("abcdefgh_0123", min_size=3), min_size=1, max_size=8), st.data())
def test_a_valid_name_is_nearest_to_itself(names: set[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(names)))
    assert did_you_mean(name, names) == f" Did you mean {name!r}?"


def test_an_unknown_name_is_shown_with_its_place_and_what_is_known() -> None:
    error = unknown("strategy", "haed", ["head", "full"], "run.yaml:3")
    assert isinstance(error, UserError)
    expected = "unknown strategy 'haed' (run.yaml:3). Did you mean 'head'? Known: full, head."
    assert str(error) == expected


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    text = str(unknown("class", "x", [f"class{i:03}" for i in range(50)]))
    assert "class019, … (50 in all)" in text
    assert "class020" not in text


@given(st.text())
def test_what_is_printable_is_one_line_that_steers_nothing(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert shown == text or not text.isprintable()


def test_what_is_not_printable_is_escaped_so_that_it_can_be_typed() -> None:
    assert printable("Käfer 甲\n\x1b[2J\u202e\udcff") == r"Käfer 甲\n\x1b[2J\u202e\xff"
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


def test_a_long_value_is_cut_in_a_message() -> None:
    assert brief("a" * 50) == repr("a" * 50)
    assert brief([1] * 5000, most=10) == "[1, 1, 1, … (15,000 characters)"


def test_a_mistake_of_one_process_is_a_mistake_of_the_user() -> None:
    assert issubclass(OnOneProcessError, UserError)
