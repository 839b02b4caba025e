"""What a run is made of, before it starts: data, network, and the freeze plan of each phase."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from tl.arguments import Loaded
from tl.cache_folder import cache_folder
from tl.config import Config
from tl.data.names import in_chunks
from tl.data.sampler import train_sampler
from tl.data.sources import open_source
from tl.data.split import AnyImages, Source, Split, some
from tl.engine.feature_plan import plan_features
from tl.engine.runtime import Runtime
from tl.errors import UserError, printable
from tl.freeze_plan import StagePlan, freeze_plan, random_and_frozen
from tl.freezing import freeze, trainable_names
from tl.mistakes import blamed_on
from tl.models import bottleneck, folders, graft, published, saved, weights, zoo
from tl.models.dropout import not_by_image
from tl.models.head_rows import HeadClasses
from tl.models.load_report import LoadReport, StageCount, by_stage
from tl.models.lora import adapt
from tl.models.network import Network
from tl.models.preprocessing import (
    Preprocessing,
    preprocessing_of,
    with_channels,
    with_image_size,
)
from tl.models.stages import is_below
from tl.objectives import Given, make_objective, objective_class
from tl.optim import parameter_groups
from tl.paths import is_weights_path
from tl.tracking.console import ConsoleTracker
from tl.tracking.tables import table

_SHOWN = 10  # names of new tensors; a network grafted into random weights has hundreds


def identity(source: Source) -> str:
    """A hash of the classes and of the images' names and labels: on these the order depends."""
    digest = hashlib.sha256("\0".join(source.classes).encode(errors="surrogateescape"))
    parts: list[AnyImages] = [source.train, source.val]
    if source.target is not None:
        parts += [source.target.images, source.target.test]
    for part in parts:
        for i, names in enumerate(in_chunks(part.names)):
            digest.update((b"\0" if i else b"") + b"\0".join(names))
        if isinstance(part, Split):
            digest.update(part.labels.tobytes())
    return digest.hexdigest()


def open_images(loaded: Loaded, here: Runtime, console: ConsoleTracker) -> tuple[Source, str]:
    """List the images, the same on every process, and say what is to be said of them.

    Returns:
        The source, and its `identity`.

    Raises:
        UserError: no such source, no images, or processes that see different ones.
    """
    config, chosen = loaded.config, loaded.config.model.weights
    known = _model_folder_config(chosen).get("classes")
    if known is None and not config.data.has_source and chosen and is_weights_path(chosen):
        with blamed_on(loaded.origins, "model", "weights"):
            raise UserError(
                f"model.weights {chosen} is no folder of a run with a model in it, and without a "
                "source the classes are those of the model. Give the folder of the run that "
                "trained it, or data.source_root"
            )
    with blamed_on(loaded.origins, "data"):
        index = cache_folder(config.cache) / "index"
        source = here.first_on_each_node(
            lambda: open_source(config.data, config.seed, index, known)
        )
    images = identity(source)
    here.check_same("images", images)
    for note in (*source.notes, describe_source(source)):
        console.say(note)
    return source, images


def load_network(
    loaded: Loaded, source: Source, here: Runtime
) -> tuple[Network, Preprocessing, LoadReport]:
    """`make_network` on every process; what has to be downloaded is, once on each node.

    Raises:
        UserError: as `make_network`, with the place that the name came from.
    """
    config = loaded.config
    with blamed_on(loaded.origins, "model", "name"):
        zoo.check_architecture(config.model.name)
    with blamed_on(loaded.origins, "model", "weights"):
        here.first_on_each_node(lambda: published.download(config.model.name, config.model.weights))
    return here.on_all(lambda: make_network(config, source))


def make_network(config: Config, source: Source) -> tuple[Network, Preprocessing, LoadReport]:
    """The network with its weights and a head for the classes, and what images go in as.

    Raises:
        UserError: no such architecture or weights, or they do not fit.
    """
    return network_for(config, source.classes)


def network_for(
    config: Config, classes: Sequence[str]
) -> tuple[Network, Preprocessing, LoadReport]:
    """The network that a run of this config starts with, for these classes."""
    model, chosen = config.model, config.model.weights
    preprocessing = preprocessing_of(model.name, chosen)
    if config.data.channels is not None:
        preprocessing = with_channels(preprocessing, config.data.channels)
    if config.data.image_size is not None:
        preprocessing = with_image_size(preprocessing, config.data.image_size)
    # The same seed on every process: a new head starts the same everywhere.
    torch.manual_seed(config.seed)
    network = zoo.build(
        model.name,
        len(classes),
        preprocessing.crop_size,
        in_channels=preprocessing.channels,
        keep=model.reuse.upto or model.reuse.stages,
    )
    saved_with = _model_folder_config(chosen)
    keep_head = model.head == "keep" or (
        model.head == "auto" and saved_with.get("classes") == list(classes)
    )
    # A run's network may have one already; other weights are of a network without.
    had = saved_with.get("arguments", {}).get("bottleneck")
    if had is not None or (model.bottleneck is not None and keep_head):
        bottleneck.check(model.bottleneck, had, str(chosen))
        assert had is not None
        bottleneck.put(network, had)
    known = HeadClasses(classes, model.head_classes or {})
    report = weights.load(
        network,
        chosen,
        keep_head=keep_head,
        key=model.weights_key,
        head_classes=known if model.head == "classes" else None,
    )
    if model.bottleneck is not None and had is None:
        bottleneck.put(network, model.bottleneck)
        report = report.with_new(network.model.state_dict())
    for wish in model.reuse.graft:
        report = graft.with_graft(report, wish, graft.graft(network, wish))
    return network, preprocessing, report


def _model_folder_config(chosen: str | None) -> dict[str, Any]:
    """What a run's model folder says of its network, if the weights are such; else empty."""
    if chosen is None or not is_weights_path(chosen):
        return {}
    folder = folders.model_folder(Path(chosen).expanduser())
    return saved.read_config(folder / "config.json") if folder else {}


def show_plan(
    loaded: Loaded,
    index: int,
    source: Source,
    network: Network,
    given: Given,
    preprocessing: Preprocessing,
    report: LoadReport,
    here: Runtime,
    console: ConsoleTracker,
) -> list[StagePlan]:
    """Set a phase up, show its freeze plan and return it, and say what about it is rarely meant.

    Raises:
        UserError: the phase names a part that the network does not have.
    """
    phase = loaded.phases[index]
    adapt(network, phase.train, seed=0)  # this time for their number alone
    freeze(network, trainable_names(network, phase.train), phase.batch_norm)
    with blamed_on(loaded.origins, "phases", index, "objective_options"):
        objective = make_objective(network, phase, given)
    groups = parameter_groups(objective.trained_parameters(), phase.optimizer, network.depth_of)
    lr_of = {name: group["base_lr"] for group in groups for name in group["names"]}
    rows = freeze_plan(network, lr_of)
    console.show(_plan_table(f"phase {phase.name}: {phase.train} trains", rows))
    prefix = [stage.name for stage in network.stages[: network.frozen_prefix]]
    if prefix:
        console.say(f"frozen prefix, without autograd: {prefix[0]} to {prefix[-1]}")
        of_target = objective_class(phase.objective).streams[0] == "target"
        sampler = train_sampler(phase, source, loaded.config.seed, 0, of_target=of_target)
        half = here.precision != "no"
        cache = loaded.config.cache
        plan = plan_features(cache, phase, network, preprocessing, source, sampler, half)
        for line in plan.notes:
            console.say(line)
    for note in random_and_frozen(network, report.new, report.loaded > 0):
        console.say(f"note: {note}")
    if here.world_size > 1 and any("train" in row.batch_norm for row in rows):
        console.say(
            "note: BatchNorm that trains normalises by each process's own share of a batch, so "
            "losses depend on the number of processes; batch_norm=sync or frozen makes them equal"
        )
    still = network.eval_modules
    dropping = [
        name
        for name in not_by_image(network.model)
        if not any(is_below(name, prefix) for prefix in still)
    ]
    if here.world_size > 1 and dropping:
        console.say(
            f"note: {some(dropping)} drop{'s' if len(dropping) == 1 else ''} values by a generator "
            "of each process, so losses depend on the number of processes"
        )
    console.say("")
    return rows


def _plan_table(title: str, rows: list[StagePlan]) -> Table:
    """The freeze plan; with the depths that rates follow from, where there are several rates."""
    columns = ["stage", "parameters", "trainable", "frozen", "BatchNorm", "learning rate"]
    totals = [sum(row.parameters for row in rows), sum(row.trainable for row in rows)]
    lines: list[list[Any]] = [
        [row.stage, row.parameters, row.trainable, row.frozen, row.batch_norm, row.lr]
        for row in rows
    ]
    lines.append(["all", *totals, totals[0] - totals[1], "", ""])
    if len({row.lr for row in rows if row.trainable}) > 1:
        columns.insert(1, "depth")
        for line, depth in zip(lines, [*(row.depth for row in rows), None], strict=True):
            line.insert(1, depth)
    return table(title, columns, lines)


def describe_source(source: Source) -> str:
    """Some lines on the images and their classes."""
    names = ", ".join(map(printable, source.classes[:8])) + (
        ", …" if len(source.classes) > 8 else ""
    )
    lines = [f"{len(source.classes)} classes: {names}"]
    if (target := source.target) is not None:
        labels = "with" if isinstance(target.test, Split) else "without"
        lines.insert(
            0,
            f"target: {target.name}, {len(target.images):,} images to adapt to and "
            f"{len(target.test):,} to test on, {labels} labels",
        )
    parts = f"{len(source.train):,} training and {len(source.val):,} validation images"
    return "\n".join([f"data: {source.name}, {parts}", *lines])


def describe_weights(report: LoadReport) -> str:
    """A line on the weights, and one for each thing that was done to make them fit."""
    if not report.loaded:
        return "weights: random"
    shown = [*report.new[:_SHOWN], *(["…"] if len(report.new) > _SHOWN else [])]
    new = f"; new: {', '.join(shown)}" if shown else ""
    first = f"weights: {report.source}, {report.loaded} tensors{new}"
    return "\n".join([first, *(f"  {note}" for note in report.notes)])


def weights_table(network: Network, report: LoadReport) -> Table | None:
    """Tensors by stage, where more became of them than that all but the head was loaded."""
    counts = by_stage(network, report)
    head = network.stages[-1].name
    usual = all(row.stage == head or not (row.new or row.dropped or row.skipped) for row in counts)
    if not report.loaded or usual:
        return None
    return table("weights by stage, in tensors", ["stage", *StageCount._fields[1:]], counts)
