"""Keys of a whole run, over those of its data, its network and its training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tl.config.data import DataConfig
from tl.config.model import ModelConfig
from tl.config.training import BestConfig, Phase, Training
from tl.config.values import (
    Duration,
    Keys,
    NonfinitePolicy,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TimeLimit,
)
from tl.config.wandb import WandbConfig


class TrackingConfig(Keys):
    log_every: PositiveInt = 10
    """steps between two lines of training metrics"""
    trackers: list[str] = ["jsonl", "wandb", "console"]
    """where metrics go: names, or package.module:name of your own"""
    report: bool = True
    """write report.html into run_dir, at the end and now and then while the run goes on; what
    `tl report` needs besides is kept in report/"""
    wandb: WandbConfig = WandbConfig()


class CacheConfig(Keys):
    features: bool = True
    """keep what the frozen prefix makes of each image, where it always gets the same view of it"""
    views: PositiveInt | None = None
    """augment each training image of a phase with a frozen prefix in so many ways, which epochs
    take in turn and whose features can be kept; null: in another way in every epoch"""
    max_bytes: NonNegativeInt = 20_000_000_000
    """bytes of features on the disk; the least recently used make room"""
    folder: str | None = None
    """where; null: transfer-launcher in $XDG_CACHE_HOME or ~/.cache"""


class CheckpointConfig(Keys):
    every_steps: PositiveInt | None = None
    """steps between two checkpoints, besides those after each evaluation"""
    every_minutes: PositiveFloat | None = None
    """minutes from one checkpoint to the next, at most"""
    keep: PositiveInt = 2
    """checkpoints that stay"""


class Config(Training):
    """A run."""

    run_dir: str | None = None
    """folder of everything the run leaves; null: a new one below runs/"""
    seed: NonNegativeInt = 0
    """seed of the new weights, the order of the data, its augmentation and its splits"""
    strategy: str | None = "head"
    """short name of a list of phases; see also phases"""
    phases: Annotated[list[Phase], Field(min_length=1)] | None = None
    """the list of phases spelled out, in place of a strategy; each takes the training keys
    above, `name` and `train`"""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """`auto`: what the launcher says, else bf16 or fp16 where the GPU or CPU computes in it"""
    tf32: bool = True
    """let a GPU round the factors of float32 products to 10 bits, several times as fast"""
    compile: bool = False
    """compile each phase's forward and backward pass (torch.compile): a minute at first, faster
    steps after it"""
    num_processes: PositiveInt | None = None
    """refuse to run on any other number of processes"""
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads of each process; null: the cores of the node, divided"""
    time_limit: TimeLimit | None = None
    """stop with a checkpoint before this much time is over, as 90s, 1h30m or 1-12:00:00; null:
    Slurm's limit, if Slurm runs it; none: no limit"""
    hang_timeout: Duration = "10m"
    """end the run, with stacks and the rank named, if no process gets on for so long"""
    nonfinite: NonfinitePolicy = "stop"
    """a step whose loss or gradient is NaN or infinite moves nothing. `stop`: it ends the run;
    `skip(n)`: it is left out, n times at most; `rollback(n)`: with all since the checkpoint"""
    disk_errors: Literal["stop", "continue"] = "stop"
    """a full disk ends the run, or training goes on and what could not be written is said"""
    best: BestConfig = BestConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if (self.strategy is None) == (self.phases is None):
            raise ValueError("give either strategy or phases")
        return self

    @property
    def chosen_best(self) -> BestConfig:
        """`best`, with the metric that ``auto`` stands for in this run."""
        if self.best.metric != "auto":
            return self.best
        metric = "target/im" if self.data.has_target else "val/accuracy"
        return self.best.model_copy(update={"metric": metric})
