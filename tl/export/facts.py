"""What a run's folder says of how its model was made, for the model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl import yaml12
from tl.atomic import from_json
from tl.cache_folder import cache_folder
from tl.data.sources import open_source
from tl.engine.evaluation_request import Request
from tl.errors import UserError
from tl.paths import is_weights_path
from tl.tracking.tracker import CONFIG, SUMMARY


@dataclass(frozen=True)
class Facts:
    """Of a run; little, of a model folder that came alone."""

    config: dict[str, Any] = field(default_factory=dict)
    """config.yaml, as it is: nothing of it is looked up or run"""
    summary: dict[str, Any] = field(default_factory=dict)
    """summary.json"""
    data: str | None = None
    training_images: int | None = None
    validation_images: int | None = None

    @property
    def start(self) -> str | None:
        """The weights that the run began with: a name, or the last part of a path."""
        model = self.config.get("model")
        weights = model.get("weights", "DEFAULT") if isinstance(model, dict) else None
        if not self.config:
            return None
        if weights is None:
            return "random"
        return Path(str(weights)).name if is_weights_path(str(weights)) else str(weights)

    @property
    def phases(self) -> list[str]:
        """A line for each phase, or the strategy's name."""
        phases = self.config.get("phases")
        if not isinstance(phases, list):
            return [str(self.config["strategy"])] if self.config.get("strategy") else []
        lines = []
        for phase in phases:
            if isinstance(phase, dict):
                length = phase.get("epochs", self.config.get("epochs"))
                steps = phase.get("steps")
                how_long = f"{steps} steps" if steps else f"{length} epochs" if length else ""
                name = phase.get("name") or phase.get("train")
                lines.append(f"{name}: trains {phase.get('train')}, {how_long}".rstrip(", "))
        return lines


def facts_of(asked: Request) -> Facts:
    """What the folder says. What is not there, or is damaged, is left out."""
    if asked.run is None:
        return Facts()
    try:
        config, _ = yaml12.load((asked.run / CONFIG).read_text("utf-8"), CONFIG)
    except (OSError, ValueError):
        config = {}
    try:
        summary = from_json((asked.run / SUMMARY).read_bytes())
    except (OSError, ValueError):
        summary = {}
    facts = Facts(
        config if isinstance(config, dict) else {}, summary if isinstance(summary, dict) else {}
    )
    if asked.config.data.has_source:
        try:
            index = cache_folder(asked.config.cache) / "index"
            source = open_source(asked.config.data, asked.config.seed, index)
        except UserError:  # they are not here, and it is checked on others
            return facts
        name = Path(source.name).name  # the folders above are nobody else's business
        return Facts(facts.config, facts.summary, name, len(source.train), len(source.val))
    return facts
