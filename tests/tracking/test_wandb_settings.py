"""Which mode a run is in, and what W&B is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tl.arguments import load
from tl.config import Config, WandbConfig
from tl.errors import UserError
from tl.tracking.tracker import RunInfo
from tl.tracking.wandb_settings import (
    init_arguments,
    key_for,
    resolve_mode,
    secret_of_slurm,
    without_home,
)

RUN = RunInfo(Config(seed=1).model_dump(), Path("runs/first"), "id1", 10)
AUTOMATIC = ["head", "supervised", "resnet18", "digits"]


def mode(configured: str, has_key: bool = False, **environ: str) -> str:
    return resolve_mode(configured, environ, lambda: has_key)[0]


@pytest.mark.parametrize(
    ("variable", "secret"),
    [("SLURM_JWT", True), ("SLURM_SPANK_OPTION_x", True), ("SLURM_MY_TOKEN", True),
     ("SLURM_JOB_ID", False), ("SLURM_TASKS_PER_NODE", False), ("HF_TOKEN", False)],
)  # fmt: skip
def test_of_what_wandb_records_of_slurm_some_is_secret(variable: str, secret: bool) -> None:
    assert secret_of_slurm(variable) == secret


def test_auto_is_online_with_a_key_and_offline_without_one() -> None:
    assert mode("auto", has_key=True) == "online"
    assert mode("auto", has_key=False) == "offline"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("online", "online"), ("offline", "offline"), ("disabled", "disabled"), ("dryrun", "offline")],
)
def test_auto_leaves_it_to_wandb_mode(value: str, expected: str) -> None:
    assert mode("auto", has_key=True, WANDB_MODE=value) == expected


def test_the_config_goes_before_the_environment() -> None:
    assert mode("offline", has_key=True, WANDB_MODE="online") == "offline"
    assert mode("online", has_key=True, WANDB_MODE="disabled") == "online"
    assert mode("online", has_key=True, WANDB_DISABLED="true") == "online"


def test_wandb_disabled_switches_it_off() -> None:
    assert mode("auto", has_key=True, WANDB_DISABLED="true") == "disabled"
    assert mode("auto", has_key=True, WANDB_DISABLED="false") == "online"


def test_online_without_a_key_is_offline_since_nobody_is_there_to_be_asked() -> None:
    resolved, why = resolve_mode("online", {}, lambda: False)
    assert resolved == "offline"
    assert "wandb login" in why


def test_a_misspelt_wandb_mode_is_an_error_that_offers_the_right_one() -> None:
    with pytest.raises(UserError, match=r"WANDB_MODE.*Did you mean 'offline'"):
        mode("auto", WANDB_MODE="ofline")


def test_no_key_is_looked_for_where_none_is_needed() -> None:
    def has_key() -> bool:
        raise AssertionError("looked for a key")

    for configured in ("offline", "disabled"):
        resolve_mode(configured, {}, has_key)


def test_a_key_is_found_in_the_environment_and_in_netrc(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    nowhere = {"NETRC": str(file)}
    assert not key_for("https://api.wandb.ai", nowhere)
    assert key_for("https://api.wandb.ai", {**nowhere, "WANDB_API_KEY": "k"})
    file.write_text("machine api.wandb.ai login user password k\n")
    assert key_for("https://api.wandb.ai", nowhere)
    assert not key_for("https://wandb.example.org", nowhere)
    file.write_text("machine without a meaning\n")
    assert not key_for("https://api.wandb.ai", nowhere)


def test_wandb_variables_count_where_the_config_says_nothing() -> None:
    environ = {
        "WANDB_PROJECT": "their-project",
        "WANDB_ENTITY": "their-team",
        "WANDB_NAME": "their-name",
        "WANDB_RUN_GROUP": "their-group",
        "WANDB_TAGS": "a,b",
        "WANDB_DIR": "/scratch",
        "WANDB_RUN_ID": "their-id",
    }
    arguments = init_arguments(WandbConfig(), RUN, environ)
    assert arguments["project"] == "their-project"
    assert arguments["entity"] == "their-team"
    assert arguments["name"] == "their-name"
    assert arguments["group"] == "their-group"
    assert arguments["tags"] == [*AUTOMATIC, "a", "b"]
    assert arguments["dir"] == "/scratch"
    assert arguments["id"] == "their-id"

    config = WandbConfig(project="p", entity="e", name="n", group="g", tags=["t"])
    arguments = init_arguments(config, RUN, environ)
    assert [arguments[key] for key in ("project", "entity", "name", "group", "tags")] == [
        "p",
        "e",
        "n",
        "g",
        [*AUTOMATIC, "t"],
    ]


def test_by_default_a_run_is_named_after_what_it_trains_and_goes_through_restarts() -> None:
    arguments = init_arguments(WandbConfig(), RUN, {"SECRET": "hunter2"})
    assert arguments["name"] == "head-resnet18-digits-seed1"
    assert arguments["job_type"] == "train"
    assert (arguments["id"], arguments["resume"]) == ("id1", "allow")
    assert arguments["project"] == "transfer-launcher"
    assert arguments["dir"] == "runs/first"
    assert "hunter2" not in str(arguments)


def test_a_run_that_goes_on_keeps_its_name_and_group_unless_it_is_given_others() -> None:
    earlier = {"name": "before", "group": "ours"}
    kept = init_arguments(WandbConfig(), RUN, {}, earlier)
    assert (kept["name"], kept["group"]) == ("before", "ours")
    given = init_arguments(WandbConfig(name="n"), RUN, {"WANDB_RUN_GROUP": "g"}, earlier)
    assert (given["name"], given["group"]) == ("n", "g")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("WANDB_PROJECT", "team/project", "without /. What stands before a / is the team"),
        ("WANDB_NAME", "x" * 129, "at most 128 characters"),
        ("WANDB_TAGS", "fine," + "x" * 65, "1 to 64 characters"),
    ],
)
def test_what_wandb_would_refuse_of_the_environment_is_named(
    variable: str, value: str, says: str
) -> None:
    with pytest.raises(UserError, match=f"^{variable}=.*{says}"):
        init_arguments(WandbConfig(), RUN, {variable: value})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("project=team/project", "What stands before a / is the team: tracking.wandb.entity"),
        ("project=''", "must not be empty"),
        ("entity=a/b", "must be a name without /"),
        (f"name={'x' * 129}", "at most 128 characters"),
        ("tags=['']", "must have 1 to 64 characters"),
        ("model=bst", "Did you mean 'best'"),
        ("system_metrics=al", "Did you mean 'all'"),
    ],
)
def test_what_wandb_would_refuse_of_a_config_is_a_mistake_in_it(override: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^tracking.wandb.*{says}"):
        load(None, [f"tracking.wandb.{override}"], {})


def test_paths_in_the_config_do_not_name_a_home_folder() -> None:
    config = {"data": {"root": "/home/me/flowers", "n": 3}, "graft": [{"weights": "/home/me"}]}
    assert without_home(config, "/home/me") == {
        "data": {"root": "~/flowers", "n": 3},
        "graft": [{"weights": "~"}],
    }
    elsewhere = {"root": "/home/metoo/x", "run_dir": "runs/home/me"}
    assert without_home(elsewhere, "/home/me") == elsewhere
    assert without_home(elsewhere, "/") == elsewhere
