"""What people and editors are shown of the keys is what the keys are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl import yaml12
from tl.arguments import load
from tl.config import Config, Phase
from tl.config_help import describe_config, describe_keys, json_schema, type_name
from tl.errors import UserError
from tl.mistakes import dotted, leaves
from tl.phases import STRATEGIES

SCHEMA = json.loads(json_schema())


def test_help_names_every_key_with_its_default_and_a_line() -> None:
    lines = describe_keys().splitlines()
    for path, field in leaves(Config):
        (index,) = [i for i, line in enumerate(lines) if line.startswith(f"  {dotted(path)}: ")]
        shown = lines[index].partition(" = ")[2]
        assert yaml12.load(shown, "help")[0] == field.default
        assert len(lines[index + 1].strip()) > 5


def test_help_names_every_strategy_and_every_key_of_a_phase() -> None:
    lines = describe_keys().splitlines()
    for strategy in STRATEGIES:
        assert any(re.match(rf"  {strategy}(\(\w+\))?: \w", line) for line in lines), strategy
    for path, _ in leaves(Phase):
        (index,) = [i for i, x in enumerate(lines) if x.startswith(f"  phases.N.{dotted(path)}: ")]
        assert re.search(r" = .|\(required\)$", lines[index])
        assert len(lines[index + 1].strip()) > 5


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [(int, "int"), (str | None, "text or null"), (list[float], "list of float")],
)
def test_types_are_written_for_people(annotation: Any, shown: str) -> None:
    assert type_name(annotation) == shown


OVERRIDES = [
    "strategy=last_stages(2)", "phases=[{train: head}, {train: full, epochs: 3}]",
    "steps=7", "phases.0.epochs=2",
    "phases.0.optimizer.lr=0.5", "optimizer={lr: 0.25}", "run_dir=null", "run_dir='null'",
    'tracking.wandb.name="two\\nlines # and no comment"', "tracking.wandb.tags=[a b, 'no', '1e-3']",
    "data.root=" + "long/ " * 60, "tracking.wandb.name=over\n  lines", "data.classes=[no, 7]",
    "model={head: classes, head_classes: {'a: b': ant, '7': 3}}", "data.channels=1",
    "model.reuse.graft=[{weights: /a, from: b}, {weights: /b, match: 'x(.*)', rename: \\1}]",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(OVERRIDES), max_size=5))
def test_print_config_is_yaml_that_loads_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, overrides: list[str]
) -> None:
    first = load(None, overrides, {})
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(describe_config(first), encoding="utf-8")
    second = load(file, [], {})
    assert second.config == first.config
    assert second.phases == first.phases


def test_print_config_says_where_each_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nphases:\n- train: full\n")
    shown = describe_config(load(file, ["optimizer.lr=0.5"], {"TL_EPOCHS": "2"}))
    expected = {
        "seed: 3": f"{file}:1", "strategy: null": f"{file}:3", "phases:": f"{file}:3",
        "epochs: 2": "environment: TL_EPOCHS", "  lr: 0.5": "command line: optimizer.lr=0.5",
        "  momentum: 0.9": "default",
    }  # fmt: skip
    for line, origin in expected.items():
        assert re.search(rf"^{re.escape(line)} +# {re.escape(origin)}$", shown, re.MULTILINE), line


def test_print_config_says_where_each_value_of_a_phase_came_from(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("phases:\n- train: head\n  optimizer: {lr: 0.5}\n- {name: b, train: full}\n")
    overrides = [
        "phases.1.optimizer.momentum=0.3",
        "optimizer.weight_decay=0.1",
        "phases.1.steps=7",
    ]
    shown = describe_config(load(file, overrides, {"TL_EPOCHS": "2"}))
    first, second = shown.partition("\nphases:")[2].split("\n- ")[1:]
    expected = [
        (first, "train: head", f"{file}:2"), (first, "    lr: 0.5", f"{file}:3"),
        (first, "    # weight_decay: 0.1", "top level, command line: optimizer.weight_decay=0.1"),
        (first, "  # epochs: 2", "top level, environment: TL_EPOCHS"),
        (first, "    # momentum: 0.9", "default"), (first, "  # clip_norm: 1.0", "default"),
        (second, "name: b", f"{file}:4"), (second, "    # lr: 0.01", "default"),
        (second, "    momentum: 0.3", "command line: phases.1.optimizer.momentum=0.3"),
        (second, "  steps: 7", "command line: phases.1.steps=7"),
    ]  # fmt: skip
    for phase, line, origin in expected:
        assert re.search(rf"^{re.escape(line)} +# {re.escape(origin)}$", phase, re.MULTILINE), line
    assert " epochs" not in second
    values = [line for line in (first + second).splitlines() if not line.endswith(":")]
    assert all("  # " in line for line in values)


def test_print_config_says_which_strategy_a_value_came_from() -> None:
    origin = "strategy full, command line: strategy=full"
    for overrides in (["strategy=full"], ["strategy=full", "phases.0.epochs=3"]):
        shown = describe_config(load(None, overrides, {}))
        assert re.search(rf"^(#   |  )train: full +# {origin}$", shown, re.MULTILINE)


def test_print_config_spells_a_strategy_out_in_comments() -> None:
    shown = describe_config(load(None, ["strategy=last_stages(2)"], {}))
    assert "# last_stages(2) stands for these phases:\n# phases:\n# - " in shown
    assert "train: last_stages(2)" in shown


# ------------------------------------------------------------------------------- the JSON schema

ANNOTATIONS = {"title", "description", "default", "$defs"}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """JSON Schema, as far as the config's uses it; any other keyword fails the test."""
    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                ok = accepts(SCHEMA["$defs"][rule.removeprefix("#/$defs/")], value)
            case "anyOf":
                ok = any(accepts(choice, value) for choice in rule)
            case "enum":
                ok = value in rule
            case "type":
                ok = is_of_type(value, rule)
            case "properties":
                ok = not isinstance(value, dict) or all(
                    accepts(rule[key], item) for key, item in value.items() if key in rule
                )
            case "additionalProperties":
                known = schema.get("properties", {})
                ok = not isinstance(value, dict) or all(
                    rule is True or (rule is not False and accepts(rule, item))
                    for key, item in value.items()
                    if key not in known
                )
            case "required":
                ok = not isinstance(value, dict) or set(rule) <= set(value)
            case "items":
                ok = not isinstance(value, list) or all(accepts(rule, item) for item in value)
            case "minItems":
                ok = not isinstance(value, list) or len(value) >= rule
            case "maxItems":
                ok = not isinstance(value, list) or len(value) <= rule
            case "minimum":
                ok = not is_of_type(value, "number") or value >= rule
            case "maximum":
                ok = not is_of_type(value, "number") or value <= rule
            case "exclusiveMinimum":
                ok = not is_of_type(value, "number") or value > rule
            case "exclusiveMaximum":
                ok = not is_of_type(value, "number") or value < rule
            case "pattern":
                ok = not isinstance(value, str) or re.search(rule, value) is not None
            case _:
                assert keyword in ANNOTATIONS, f"this test knows no {keyword}"
                ok = True
        if not ok:
            return False
    return True


def is_of_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    python: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
        "null": type(None), "boolean": bool,
    }  # fmt: skip
    return isinstance(value, python[kind])


EXAMPLES = [
    {},
    {"run_dir": "runs/a", "seed": 1, "strategy": "last_stages(2)", "epochs": 3, "steps": None},
    {"phases": [{"train": "head"}, {"name": "b", "train": "full", "optimizer": {"lr": 1e-3}}]},
    {"data": {"classes": ["cat", 7], "root": None}, "model": {"weights": None}},
    {"optimizer": {"betas": [0.9, 0.95]}, "mixed_precision": "no", "clip_norm": 1},
    {"optimizer": {"lr": -1}},
    {"epochs": 0},
    {"epochs": "3"},
    {"sede": 1},
    {"optimizer": {"betas": [0.9]}},
    {"schedule": {"name": "cosin"}},
    {"phases": [{"name": "a"}]},
    {"phases": []},
    {"phases": [{"train": "full", "lr": 1}]},
    {"data": {"classes": [1.5]}},
    {"nesterov": True},
    {"time_limit": "1h30m", "hang_timeout": "0:10:00", "nonfinite": "rollback(2)"},
    {"time_limit": "none"},
    {"hang_timeout": "none"},
    {"time_limit": "soon"},
    {"time_limit": 90},
    {"nonfinite": "skip"},
    {"objective": "l2_sp", "objective_options": {"alpha": 0.5}},
    {"objective_options": 3},
    {"class_weights": "balanced"},
    {"class_weights": "effective(0.999)"},
    {"class_weights": "effective(1)"},
    {"class_weights": "effective"},
    {"class_weights": "balanced(0.1)"},
    {"phases": [{"train": "full", "mixup": 0.2, "cutmix": 1, "focal": 2}]},
    {"mixup": -0.1},
    {"nonfinite": "skip(0)"},
]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_schema_accepts_what_loads_and_nothing_else(
    example: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml12.dump(example))
    try:
        load(file, [], {})
        loads = True
    except UserError:
        loads = False
    assert accepts(SCHEMA, example) == loads


@pytest.mark.parametrize("overrides", [[], ["phases=[{train: full}]"]])
def test_the_schema_accepts_a_resolved_config(overrides: list[str]) -> None:
    assert accepts(SCHEMA, yaml12.load(load(None, overrides, {}).to_yaml(), "config")[0])


@pytest.mark.parametrize(
    "file",
    # Those of a run; configs/accelerate holds the launcher's.
    sorted(
        path
        for path in (Path(__file__).parents[1] / "configs").rglob("*.yaml")
        if path.parent.name != "accelerate"
    ),
    ids=lambda file: file.name,
)
def test_shipped_configs_load_and_fit_the_schema(file: Path) -> None:
    load(file, [], {})
    assert accepts(SCHEMA, yaml12.load(file.read_text("utf-8"), file.name)[0] or {})
