"""Layers of a config: which goes before which, where a value came from, and what a mistake says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl import yaml12
from tl.arguments import Loaded, load
from tl.config import Config
from tl.config_help import describe_config
from tl.errors import UserError
from tl.mistakes import dotted
from tl.yaml12 import KeyPath


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def given_file(file: Path, text: str, *overrides: str, **environ: str) -> Loaded:
    file.write_text(text, encoding="utf-8")
    return load(file, overrides, environ)


def mistake(*overrides: str, file: Path | None = None, **environ: str) -> str:
    with pytest.raises(UserError) as caught:
        load(file, overrides, environ)
    return str(caught.value)


# ------------------------------------------------------------------------------------- precedence


def test_defaults_file_environment_command_line(file: Path) -> None:
    text = "seed: 1\nepochs: 1\noptimizer:\n  lr: 0.1\n"
    environ = {"TL_EPOCHS": "2", "TL_OPTIMIZER__LR": "0.2", "HOME": "/", "SEED": "9"}
    loaded = given_file(file, text, "optimizer.lr=0.3", **environ)
    config = loaded.config
    assert (config.seed, config.epochs, config.optimizer.lr) == (1, 2, 0.3)
    assert config.optimizer.momentum == Config().optimizer.momentum
    assert loaded.origins["seed",] == f"{file}:1"
    assert loaded.origins["epochs",] == "environment: TL_EPOCHS"
    assert loaded.origins["optimizer", "lr"] == "command line: optimizer.lr=0.3"
    assert ("optimizer", "momentum") not in loaded.origins


KEYS: dict[KeyPath, st.SearchStrategy[Any]] = {
    ("seed",): st.integers(0, 9),
    ("epochs",): st.integers(1, 9),
    ("optimizer", "lr"): st.floats(0, 1),
    ("optimizer", "momentum"): st.sampled_from([0.0, 0.5]),
    ("schedule", "name"): st.sampled_from(["step", "poly"]),
    ("data", "classes"): st.none() | st.lists(st.sampled_from(["no", "1", "a b"]), max_size=2),
    ("tracking", "wandb", "name"): st.none() | st.text(st.characters(exclude_categories=["C"])),
}
layer = st.fixed_dictionaries({}, optional=KEYS)


@settings(max_examples=60, deadline=None)
@given(layer, layer, layer)
def test_the_last_layer_that_has_a_key_wins_it(
    tmp_path_factory: pytest.TempPathFactory,
    in_file: dict[KeyPath, Any],
    in_environment: dict[KeyPath, Any],
    on_the_line: dict[KeyPath, Any],
) -> None:
    tree: dict[str, Any] = {}
    for path, value in in_file.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(str(part), {})
        node[str(path[-1])] = value
    file = tmp_path_factory.mktemp("config") / "run.yaml"
    file.write_text(yaml12.dump(tree), encoding="utf-8")
    environ = {
        "TL_" + "__".join(map(str, path)).upper(): yaml12.dump_inline(value)
        for path, value in in_environment.items()
    }
    overrides = [f"{dotted(path)}={yaml12.dump_inline(v)}" for path, v in on_the_line.items()]
    loaded = load(file, overrides, environ)
    layers = [(on_the_line, "command line"), (in_environment, "environment"), (in_file, str(file))]
    for path in KEYS:
        values, places = loaded.config.model_dump(), Config().model_dump()
        for part in path:
            values, places = values[part], places[part]
        won = next(((given, where) for given, where in layers if path in given), None)
        assert values == (won[0][path] if won else places)
        assert loaded.origins.get(path, "default").startswith(won[1] if won else "default")


def test_a_group_is_merged_and_its_values_know_where_they_came_from(file: Path) -> None:
    text = "tracking:\n  wandb:\n    mode: offline\n    project: p\n"
    loaded = given_file(file, text, "tracking={wandb: {mode: disabled}}")
    wandb = loaded.config.tracking.wandb
    assert (wandb.mode, wandb.project) == ("disabled", "p")
    origins = loaded.origins
    assert origins["tracking", "wandb", "mode"].startswith("command line: ")
    assert origins["tracking", "wandb", "project"] == f"{file}:4"


def test_a_value_may_hold_an_equals_sign_and_spaces() -> None:
    loaded = load(None, ["run_dir=a b=c", "strategy=regex(a=b)"], {})
    assert loaded.config.run_dir == "a b=c"
    assert loaded.phases[0].train == "regex(a=b)"


def test_an_empty_file_is_the_defaults(file: Path) -> None:
    assert given_file(file, "# nothing\n").config == Config()


# ---------------------------------------------------------------------------- strategy and phases

TWO = "phases:\n- {name: a, train: head}\n- {name: b, train: full, optimizer: {lr: 0.1}}\n"


def test_a_phase_in_a_file_is_changed_by_its_number(file: Path) -> None:
    loaded = given_file(file, TWO, "phases.1.optimizer.momentum=0.5", TL_PHASES__0__EPOCHS="3")
    a, b = loaded.phases
    assert (a.epochs, b.epochs) == (3, Config().epochs)
    assert (b.optimizer.lr, b.optimizer.momentum) == (0.1, 0.5)
    assert loaded.origins["phases", 0, "epochs"] == "environment: TL_PHASES__0__EPOCHS"
    assert loaded.origins["phases", 0, "name"] == f"{file}:2"
    assert loaded.config.phases == [a, b]


def test_a_phase_of_a_strategy_is_changed_by_its_number() -> None:
    loaded = load(None, ["phases.0.epochs=3", "strategy=full", "optimizer.lr=0.5"], {})
    (phase,) = loaded.phases
    assert (phase.train, phase.epochs, phase.optimizer.lr) == ("full", 3, 0.5)
    assert loaded.config.strategy is None


def test_a_strategy_on_the_command_line_takes_the_place_of_a_files_phases(file: Path) -> None:
    loaded = given_file(file, TWO, "strategy=bias")
    assert [phase.train for phase in loaded.phases] == ["bias"]
    assert loaded.config.phases is None
    assert not [path for path in loaded.origins if path[:1] == ("phases",)]


def test_phases_on_the_command_line_take_the_place_of_a_files_strategy(file: Path) -> None:
    loaded = given_file(file, "strategy: bias\n", "phases=[{train: norm}]")
    assert [phase.train for phase in loaded.phases] == ["norm"]
    assert loaded.config.strategy is None
    assert loaded.origins["strategy",] == "command line: phases=[{train: norm}]"


def test_the_later_of_strategy_and_phases_on_one_command_line_counts() -> None:
    phases, strategy = "phases=[{train: norm}]", "strategy=bias"
    assert [p.train for p in load(None, [phases, strategy], {}).phases] == ["bias"]
    assert [p.train for p in load(None, [strategy, phases], {}).phases] == ["norm"]


def test_strategy_and_phases_in_one_file_are_refused(file: Path) -> None:
    file.write_text("strategy: head\n" + TWO)
    expected = f"{file}:3: give either strategy or phases, not both"
    assert mistake(file=file) == expected


@pytest.mark.parametrize("overrides", [["strategy=null"], ["strategy="]])
def test_neither_strategy_nor_phases_is_refused(overrides: list[str]) -> None:
    assert mistake(*overrides).startswith("give either strategy or phases")


@pytest.mark.parametrize("value", ["[]", "3", "head", "{a: 1}", "[3]", "[[]]"])
def test_phases_that_are_no_list_of_groups_are_refused(value: str) -> None:
    message = mistake(f"phases={value}")
    assert "phases" in message
    assert message.endswith(f"(command line: phases={value})")


# --------------------------------------------------------------------------------------- mistakes


def test_several_mistakes_are_said_at_once_each_with_its_place(file: Path) -> None:
    file.write_text("sede: 1\noptimizer:\n  lr: fast\nschedule: {name: cosin}\n")
    lines = mistake("epochs=0", file=file, TL_DATA__WORKER="2").splitlines()
    assert sorted(lines) == sorted(
        [
            f"unknown key 'sede'. Did you mean 'seed'? ({file}:1)",
            f"optimizer.lr: must be a valid number, not 'fast'. ({file}:3)",
            "schedule.name: must be 'constant', 'step', 'cosine', 'poly' or 'inverse', not 'cosin'."
            f" Did you mean 'cosine'? ({file}:4)",
            "epochs: must be greater than 0, not 0. (command line: epochs=0)",
            "unknown key 'data.worker'. Did you mean 'data.workers'?"
            " (environment: TL_DATA__WORKER)",
        ]
    )


def test_mistakes_of_all_phases_are_said_at_once(file: Path) -> None:
    file.write_text(
        "phases:\n- train: head\n  epoch: 3\n- name: b\n- {train: full, lr: 1}\n- train: 3\n"
    )
    assert mistake(file=file).splitlines() == [
        f"unknown key 'phases.0.epoch'. Did you mean 'epochs'? ({file}:3)",
        f"phases.1.train is missing ({file}:4)",
        f"unknown key 'phases.2.lr'. Did you mean 'optimizer.lr'? ({file}:5)",
        f"phases.3.train: must be a valid string, not 3. ({file}:6)",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=resnet50", "model is a group of keys, not 'resnet50': model.KEY=VALUE"),
        ("epochs=1.5", "epochs: must be a valid integer"),
        ("data.background=[1,2]", "data.background: must be three numbers from 0 to 255, as [255"),
        ("data.background=[1,2,300]", "data.background: must be three numbers from 0 to 255"),
        ("data.background=red", "data.background: must be three numbers from 0 to 255"),
        ("optimizer.betas=[0.5]", "optimizer.betas: must be a list of at least 2, not [0.5]."),
        ("optimizer.nesterov=yes", "optimizer.nesterov: must be a valid boolean, not 'yes'."),
        ("data.classes=[1.5]", "data.classes.0: must be a name or a whole number, not 1.5."),
        ("phases.1.epochs=3", "phases has 1 items, counted from 0; there is no 1"),
        ("phases.0.epochs=x", "phases.0.epochs: must be a valid integer, not 'x'."),
    ],
)
def test_a_mistake_on_the_command_line_repeats_the_argument(argument: str, message: str) -> None:
    said = mistake(argument)
    assert said.startswith(message)
    assert said.endswith(f"(command line: {argument})")


def test_an_argument_without_a_value_is_refused() -> None:
    assert mistake("seed") == "'seed' is not key.path=value"


def test_an_argument_that_is_no_yaml_is_refused_with_its_place() -> None:
    assert mistake("seed=[1").startswith("command line: seed=[1:1: not YAML: ")


def test_an_override_below_a_value_that_is_no_group_names_both_places(file: Path) -> None:
    file.write_text("optimizer: sgd\n")
    expected = (
        f"optimizer is 'sgd' ({file}:1), and no group of keys (command line: optimizer.lr=0.1)"
    )
    assert mistake("optimizer.lr=0.1", file=file) == expected


def test_a_group_that_is_empty_in_the_file_may_be_filled(file: Path) -> None:
    assert given_file(file, "optimizer:\n", "optimizer.lr=0.1").config.optimizer.lr == 0.1


def test_a_config_that_is_not_there_offers_the_file_that_is(file: Path) -> None:
    file.write_text("")
    message = mistake(file=file.with_name("runn.yaml"))
    assert message.startswith("cannot read the config ")
    assert message.endswith("runn.yaml: No such file or directory. Did you mean 'run.yaml'?")


def test_a_config_that_is_no_text_or_no_group_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    assert mistake(file=file).endswith("is not a text file in UTF-8")
    file.write_text("- a\n")
    assert "a config must be keys with values" in mistake(file=file)
    assert "Is a directory" in mistake(file=file.parent)


# ---------------------------------------------------------------------------------- epochs or steps


def test_the_later_of_epochs_and_steps_takes_the_place_of_the_earlier(file: Path) -> None:
    by_epochs = given_file(file, "steps: 100\n", "epochs=2")
    assert (by_epochs.phases[0].epochs, by_epochs.phases[0].steps) == (2, None)
    by_steps = given_file(file, "epochs: 100\n", "steps=2", TL_EPOCHS="3")
    assert by_steps.phases[0].steps == 2
    by_variable = given_file(file, "epochs: 100\n", TL_STEPS="3")
    assert by_variable.phases[0].steps == 3


def test_the_later_counts_within_a_phase_too(file: Path) -> None:
    text = "steps: 9\nphases:\n- {train: head, steps: 100}\n- {train: full, epochs: 5}\n"
    a, b = given_file(file, text, "phases.0.epochs=2", "phases.1.steps=3", "epochs=7").phases
    assert (a.epochs, a.steps) == (2, None)
    assert b.steps == 3


def test_epochs_and_steps_from_one_layer_are_a_mistake_with_both_places(file: Path) -> None:
    file.write_text("epochs: 1\nsteps: 2\n")
    both = "epochs and steps are two durations of the same phase: give one"
    assert mistake(file=file) == f"{both} ({file}:1, {file}:2)"
    assert (
        mistake("epochs=1", "steps=2") == f"{both} (command line: epochs=1, command line: steps=2)"
    )
    file.write_text("phases:\n- train: head\n  epochs: 1\n  steps: 2\n")
    assert mistake(file=file).startswith("phases.0.epochs and phases.0.steps are two durations")
    assert given_file(file, "epochs: 1\nsteps: null\n").phases[0].epochs == 1


# ------------------------------------------------------------------------------------------ paths


def test_paths_are_from_the_root_and_the_home_is_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load(None, ["run_dir=~/r", "data.root=~/d", "model.weights=w.pth"], {}).config
    assert (config.run_dir, config.data.root) == (f"{tmp_path}/home/r", f"{tmp_path}/home/d")
    assert config.model.weights == f"{tmp_path}/w.pth"
    config = load(None, ["run_dir=r", "data.root=d", "model.weights=~/w.pth"], {}).config
    assert (config.run_dir, config.data.root) == ("r", f"{tmp_path}/d")  # as short as it was given
    assert config.model.weights == f"{tmp_path}/home/w.pth"


def test_what_is_no_path_stays_as_it_is() -> None:
    overrides = ["data.source=a.b:c", "data.root=s3://bucket/x", "model.weights=IMAGENET1K_V1"]
    config = load(None, overrides, {}).config
    assert (config.data.root, config.model.weights) == ("s3://bucket/x", "IMAGENET1K_V1")
    assert load(None, ["run_dir="], {}).config.run_dir is None


def test_a_home_that_there_is_not_is_refused() -> None:
    assert mistake("run_dir=~nobody-of-this-name/x").startswith("run_dir: no home folder is known")


def test_the_resolved_config_names_the_same_places_from_another_folder(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file.write_text(load(None, ["run_dir=r", "data.root=d"], {}).to_yaml())
    domains = tmp_path / "domains.yaml"
    domains.write_text(load(None, ["data.source_root=a", "data.target_root=b"], {}).to_yaml())
    monkeypatch.chdir("/")
    config = load(file, [], {}).config
    assert (config.run_dir, config.data.root) == (f"{tmp_path}/r", f"{tmp_path}/d")
    data = load(domains, [], {}).config.data
    assert (data.source_root, data.target_root) == (f"{tmp_path}/a", f"{tmp_path}/b")


# ------------------------------------------------------------------------------ the same run again

words = st.sampled_from(["no", "1e-3", "on", "null", "7", "a: b", "x # y", "ä", "two\nlines", ""])
overrides = st.lists(
    st.one_of(
        st.sampled_from(["full", "last_stages(2)", "regex(a|#b)"]).map("strategy={}".format),
        st.builds(
            "phases=[{{train: {}}}, {{name: b, train: full, steps: {}, schedule: {{gamma: {}}}}}]"
            .format,
            st.sampled_from(["head", "norm"]), st.integers(1, 9), st.sampled_from([0.5, 1]),
        ),
        st.builds("phases.0.optimizer.lr={}".format, st.floats(0, 10)),
        st.builds("phases.0.epochs={}".format, st.integers(1, 99)),
        st.builds("optimizer.lr={}".format, st.floats(0, 10)),
        st.builds("steps={}".format, st.none().map(lambda _: "null") | st.integers(1, 99)),
        st.builds("epochs={}".format, st.integers(1, 99)),
        st.builds("schedule={{name: step, step_epochs: {}}}".format, st.integers(1, 9)),
        words.map(lambda word: f"tracking.wandb.name={yaml12.dump_inline(word)}"),
        st.lists(words).map(lambda words: f"data.classes={yaml12.dump_inline(words)}"),
    ),
    max_size=6,
)  # fmt: skip


def has_one_duration(overrides: list[str]) -> bool:
    starts = [override.partition("=") for override in overrides]
    return len({key for key, _, value in starts if value != "null"} & {"epochs", "steps"}) < 2


@settings(max_examples=80, deadline=None)
@given(overrides.filter(has_one_duration))
def test_the_resolved_config_is_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, overrides: list[str]
) -> None:
    first = load(None, overrides, {})
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(first.to_yaml(), encoding="utf-8")
    second = load(file, [], {})
    assert second.config == first.config
    assert second.phases == first.phases
    assert second.to_yaml() == first.to_yaml()


def test_an_override_of_a_top_level_key_still_reaches_resolved_phases(file: Path) -> None:
    file.write_text(load(None, ["phases=[{train: head}, {train: full, epochs: 7}]"], {}).to_yaml())
    again = load(file, ["epochs=2", "optimizer.lr=0.5"], {})
    assert [(p.epochs, p.optimizer.lr) for p in again.phases] == [(2, 0.5), (7, 0.5)]


def test_loading_a_config_imports_no_torch() -> None:
    code = (
        "import sys; from tl.arguments import load; import tl.config_help; import tl.command\n"
        "load(None, ['strategy=last_stages(2)', 'phases.0.epochs=3'], {})\n"
        "print([m for m in ('torch', 'torchvision', 'accelerate', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_of_an_objective_are_merged_and_belong_to_the_objective_beside_them(
    file: Path,
) -> None:
    file.write_text(
        "objective: l2_sp\nobjective_options: {alpha: 0.5, beta: 0.1}\n"
        "phases:\n"
        "  - {train: head}\n"
        "  - {train: full, objective_options: {beta: 0.2}}\n"
        "  - {train: full, objective: bss}\n"
        "  - {train: full, objective: bss, objective_options: {k: 2}}\n"
    )
    loaded = load(file, ["objective_options.alpha=0.7", "phases.3.objective_options.eta=1"], {})
    assert [phase.objective_options for phase in loaded.phases] == [
        {"alpha": 0.7, "beta": 0.1},
        {"alpha": 0.7, "beta": 0.2},
        {},
        {"k": 2, "eta": 1},
    ]
    again = file.with_name("resolved.yaml")
    again.write_text(loaded.to_yaml())
    assert load(again, [], {}).phases == loaded.phases
    again.write_text(describe_config(loaded))
    assert load(again, [], {}).phases == loaded.phases
