"""Keys of Weights & Biases: what a run is called there, and what it gets besides numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from tl.config.values import Keys

MOST_LETTERS, MOST_LETTERS_OF_A_TAG = 128, 64
"""of a name, a group or a project, and of a tag: W&B refuses more"""
NOT_IN_A_PROJECT = "/\\#?%:"


def check_name(text: str) -> str:
    """``text``, if W&B takes it for the name of a run, or of a group of them.

    Raises:
        ValueError: it is too long.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(f"must have at most {MOST_LETTERS} characters, which W&B takes")
    return text


def check_project(text: str) -> str:
    """``text``, if W&B takes it for a project, or for a team or user.

    Raises:
        ValueError: it is too long or empty, or has a character in it that W&B does not take.
    """
    wrong = sorted({c for c in text if c in NOT_IN_A_PROJECT})
    if wrong:
        hint = " What stands before a / is the team: tracking.wandb.entity" if "/" in wrong else ""
        raise ValueError(f"must be a name without {' '.join(wrong)}.{hint}")
    if not text.strip():
        raise ValueError("must not be empty")
    return check_name(text)


def check_tag(text: str) -> str:
    """``text``, if W&B takes it for a tag.

    Raises:
        ValueError: it is too long or empty.
    """
    if not 1 <= len(text) <= MOST_LETTERS_OF_A_TAG:
        raise ValueError(f"must have 1 to {MOST_LETTERS_OF_A_TAG} characters, which W&B takes")
    return text


Name = Annotated[str, AfterValidator(check_name)]
Project = Annotated[str, AfterValidator(check_project)]
Tag = Annotated[str, AfterValidator(check_tag)]


class WandbConfig(Keys):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: WANDB_MODE if set; else online with a key, offline without one"""
    project: Project = "transfer-launcher"
    """project; WANDB_PROJECT goes before the default"""
    entity: Project | None = None
    """team or user"""
    name: Name | None = None
    """name of the run; null: strategy-model-data-seed, and in a sweep what is swept"""
    group: Name | None = None
    """group of runs that belong together; null: a Slurm array, or runs that differ in the seed"""
    job_type: Name = "train"
    """what a run of a group does"""
    tags: list[Tag] = []
    """tags, besides those of the strategy, the objective, the network and the data"""
    notes: str | None = None
    """a longer description"""
    model: Literal["none", "best", "last", "both"] = "none"
    """upload the model when a run is done: the best one, the last one, or both"""
    system_metrics: Literal["main", "all"] = "main"
    """load of CPU, GPU and memory: of the main process, or of all, in a W&B run of its own"""
