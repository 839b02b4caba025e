"""The phases of a strategy that has to know the network and the data first.

What is measured for it is written to ``strategy.json`` in the run's folder: a run that goes on does
not decide anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tl import arguments
from tl.arguments import Loaded
from tl.atomic import from_json, write_json_atomically
from tl.cache_folder import cache_folder
from tl.config import Config
from tl.data.sources import open_source
from tl.data.split import Source
from tl.engine import gradient_norms
from tl.engine.prepare import make_network
from tl.engine.runtime import Runtime
from tl.models import published
from tl.models.network import Network
from tl.models.preprocessing import Preprocessing, preprocessing_of
from tl.strategies import Facts

FILE = "strategy.json"


def spell_out(
    loaded: Loaded,
    source: Source,
    network: Network,
    preprocessing: Preprocessing,
    is_pretrained: bool,
    run_dir: Path | None,
    here: Runtime,
    say: Callable[[str], None],
) -> Loaded:
    """The run with the phases of its strategy; called by all processes alike.

    Args:
        run_dir: of a run that may go on, where it may have been measured before.

    Raises:
        UserError: the strategy has no phases for this network and data.
    """
    config = loaded.config

    def measured() -> Mapping[str, float]:
        before = measured_before(run_dir, config.strategy) if run_dir is not None else {}
        if before.keys() == set(_stages(network)):
            return before
        say(f"measuring the gradients of up to {gradient_norms.MOST_IMAGES} training images")
        return gradient_norms.measure(config, source, network, preprocessing, here.device)

    facts = _facts(
        config, source, network, preprocessing, is_pretrained, lambda: here.on_main(measured)
    )
    return arguments.spell_out(loaded, facts)


def spell_out_alone(loaded: Loaded) -> Loaded:
    """The same for one process without a run, from data and weights that are read for it."""
    config = loaded.config
    source = open_source(config.data, config.seed, cache_folder(config.cache) / "index")
    published.download(config.model.name, config.model.weights)
    network, preprocessing, report = make_network(config, source)
    cpu = torch.device("cpu")
    facts = _facts(
        config,
        source,
        network,
        preprocessing,
        report.loaded > 0,
        lambda: gradient_norms.measure(config, source, network, preprocessing, cpu),
    )
    return arguments.spell_out(loaded, facts)


def record(run_dir: Path, loaded: Loaded) -> None:
    """Write down what has been decided, if anything was."""
    if loaded.decided:
        write_json_atomically(run_dir / FILE, loaded.decided)


def measured_before(run_dir: Path, strategy: str | None) -> dict[str, float]:
    """The norms in `FILE`, if it is of the same strategy; empty if there are none."""
    try:
        found = from_json((run_dir / FILE).read_bytes())
        if found["strategy"] != strategy:
            return {}
        norms = found["measured"]
        good = all(isinstance(norm, float) and math.isfinite(norm) for norm in norms.values())
        return norms if good else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # it is measured again, and the same comes of it


def _facts(
    config: Config,
    source: Source,
    network: Network,
    preprocessing: Preprocessing,
    is_pretrained: bool,
    measured: Callable[[], Mapping[str, float]],
) -> Facts:
    kinds = {type(module).__name__.lower() for module in network.model.modules()}
    return Facts(
        stages=_stages(network),
        is_transformer=any("attention" in kind for kind in kinds),
        is_pretrained=is_pretrained,
        image_size=preprocessing.crop_size,
        pretrained_size=preprocessing_of(config.model.name, config.model.weights).crop_size,
        classes=len(source.classes),
        train_images=len(source.train),
        gradient_norms=measured,
    )


def _stages(network: Network) -> tuple[str, ...]:
    """The stages that have parameters."""
    owners = {network.stage_of(name) for name, _ in network.model.named_parameters()}
    return tuple(stage.name for stage in network.stages if stage.name in owners)
