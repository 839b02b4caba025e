"""The keys of a run: what they are called, their types, their defaults and what they mean.

Reading them from a file, the environment and the command line is `tl.arguments`. The string
below each key is what ``--help`` shows. Nothing here imports torch, so a mistake in a config is
reported in a fraction of a second.
"""

from __future__ import annotations

from tl.config.data import DataConfig
from tl.config.model import GraftConfig, ModelConfig, ReuseConfig
from tl.config.run import CacheConfig, CheckpointConfig, Config, TrackingConfig
from tl.config.training import (
    BestConfig,
    EarlyStopping,
    OptimizerConfig,
    Phase,
    ScheduleConfig,
    Training,
)
from tl.config.values import (
    Fraction,
    Keys,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    parse_class_weights,
    seconds_of,
)
from tl.config.wandb import WandbConfig

__all__ = [
    "BestConfig",
    "CacheConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EarlyStopping",
    "Fraction",
    "GraftConfig",
    "Keys",
    "ModelConfig",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OptimizerConfig",
    "Phase",
    "PositiveFloat",
    "PositiveInt",
    "ReuseConfig",
    "ScheduleConfig",
    "TrackingConfig",
    "Training",
    "WandbConfig",
    "parse_class_weights",
    "seconds_of",
]
