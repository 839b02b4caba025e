"""Every key refuses what is no value of it, and the error says which key."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tl.config import Config, Keys, OptimizerConfig, Phase, Training, seconds_of
from tl.mistakes import leaves
from tl.yaml12 import KeyPath

LEAVES = list(leaves(Config))
IDS = [".".join(map(str, path)) for path, _ in LEAVES]


def nested(path: KeyPath, value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return value


def at(config: Any, path: KeyPath) -> Any:
    for part in path:
        config = getattr(config, str(part))
    return config


def types_of(annotation: Any) -> set[Any]:
    """The plain types a key takes, unions opened."""
    if get_origin(annotation) is Annotated:
        return types_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(types_of(part) for part in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {get_origin(annotation) or annotation}


def metadata(annotation: Any) -> Iterator[Any]:
    """Limits (Gt, Le, …) and pydantic's own notes, wherever in the annotation they stand."""
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for part in get_args(annotation):
        if get_origin(annotation) is not list:
            yield from metadata(part)


def limits(field: FieldInfo) -> list[Any]:
    found = [*field.metadata, *metadata(field.annotation)]
    opened = [inner for item in found for inner in getattr(item, "metadata", [item])]
    kinds = (annotated_types.Gt, annotated_types.Ge, annotated_types.Lt, annotated_types.Le)
    return [limit for limit in opened if isinstance(limit, kinds)]


@pytest.mark.parametrize(("path", "field"), LEAVES, ids=IDS)
def test_every_key_refuses_other_types(path: KeyPath, field: FieldInfo) -> None:
    allowed = types_of(field.annotation)
    if float in allowed:
        allowed = allowed | {int}
    # The last is wrong for every key, a list or not.
    for wrong in ("text of no choice", 3, 3.5, True, None, {"a": 1}, [{"a": 1}]):
        literal = get_origin(field.annotation) is Literal and isinstance(wrong, str)
        kind = types.NoneType if wrong is None else type(wrong)
        if kind not in allowed or literal or kind is list:
            with pytest.raises(ValidationError) as caught:
                Config.model_validate(nested(path, wrong))
            assert caught.value.errors()[0]["loc"][: len(path)] == path, wrong


WITH_LIMITS = [(path, field) for path, field in LEAVES if limits(field)]


def test_the_keys_with_limits_are_found() -> None:
    """Guards the next test: it must not run over nothing."""
    found = {".".join(map(str, path)) for path, _ in WITH_LIMITS}
    assert {"epochs", "steps", "optimizer.lr", "schedule.final", "data.workers"} <= found
    assert len(found) > 20


@pytest.mark.parametrize(
    ("path", "field"), WITH_LIMITS, ids=[".".join(map(str, p)) for p, _ in WITH_LIMITS]
)
def test_every_number_refuses_what_is_beyond_its_limits(path: KeyPath, field: FieldInfo) -> None:
    whole = float not in types_of(field.annotation)
    small = 1 if whole else 1e-9
    for limit in limits(field):
        match limit:
            case annotated_types.Gt(edge):
                outside, inside = edge, edge + small
            case annotated_types.Ge(edge):
                outside, inside = edge - small, edge
            case annotated_types.Lt(edge):
                outside, inside = edge, edge - small
            case annotated_types.Le(edge):
                outside, inside = edge + small, edge
        assert at(Config.model_validate(nested(path, inside)), path) == inside
        with pytest.raises(ValidationError) as caught:
            Config.model_validate(nested(path, outside))
        assert caught.value.errors()[0]["loc"] == path


@pytest.mark.parametrize("path", [p for p, f in LEAVES if float in types_of(f.annotation)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_is_infinite_or_nan(path: KeyPath, value: float) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(nested(path, value))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("betas", [0.9]), ("betas", [0.9, 0.99, 0.5]), ("betas", [0.9, 1.0]), ("betas", [-1, 0.9]),
        ("crop_scale", [0.0, 1.0]), ("crop_scale", [0.1, 1.1]), ("background", [0, 0]),
        ("background", [0, 0, 256]), ("background", [0, 0, -1]), ("classes", [1.5]),
        ("classes", [True]), ("tags", [1]), ("extensions", ".jpg"), ("phases", []),
    ],
)  # fmt: skip
def test_lists_are_checked_item_by_item(key: str, wrong: Any) -> None:
    (path,) = [path for path, _ in LEAVES if path[-1] == key]
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({**nested(path, wrong), "strategy": "head"})
    assert caught.value.errors()[0]["loc"][: len(path)] == path


def test_a_crop_goes_from_small_to_large() -> None:
    with pytest.raises(ValidationError, match="crop_scale"):
        Config.model_validate({"crop_scale": [1.0, 0.08]})


def test_class_names_may_be_words_and_numbers() -> None:
    config = Config.model_validate({"data": {"classes": ["no", 7]}})
    assert config.data.classes == ["no", 7]


def test_the_defaults_are_valid_by_their_own_rules() -> None:
    values = Config().model_dump()
    assert Config.model_validate(values) == Config()


@pytest.mark.parametrize("model", [Config, Phase])
def test_every_key_says_what_it_is(model: type[Keys]) -> None:
    assert not {path for path, field in leaves(model) if not field.description}


def test_a_phase_has_every_training_key_with_the_same_default() -> None:
    for name, field in Training.model_fields.items():
        assert Phase.model_fields[name].default == field.default, name


def test_a_checked_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


def test_strategy_and_phases_exclude_each_other() -> None:
    phase = {"name": "a", "train": "full"}
    for values in ({"strategy": "head", "phases": [phase]}, {"strategy": None}):
        with pytest.raises(ValidationError, match="give either strategy or phases"):
            Config.model_validate(values)
    assert Config.model_validate({"strategy": None, "phases": [phase]}).phases is not None


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "a\n"])
def test_a_name_of_a_phase_is_one_word(name: str) -> None:
    with pytest.raises(ValidationError):
        Phase.model_validate({"name": name, "train": "full"})


def test_a_whole_number_may_be_written_for_a_float() -> None:
    assert OptimizerConfig.model_validate({"lr": 1}).lr == 1.0


@given(st.integers(0, 50), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_its_seconds_however_it_is_written(d: int, h: int, m: int, s: int) -> None:
    total = ((d * 24 + h) * 60 + m) * 60 + s
    assume(total)
    texts = [f"{d}d{h}h{m}m{s}s", f"{d}-{h}:{m:02}:{s:02}", f"{total}s"]
    parts = [f"{n}{unit}" for n, unit in zip((d, h, m, s), "dhms", strict=True) if n]
    assert {seconds_of(text) for text in [*texts, "".join(parts)]} == {total}


@pytest.mark.parametrize("text", ["", "0s", "90", "12:30", "1m1h", "1 h", "-5m", "1.5h", "\u0663s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        seconds_of(text)
