"""Two domains before and after adaptation: pictures, and the numbers that go with them.

Looked at are images that neither network has learnt the labels of: validation images of the source,
and what the target is tested on. Processes share the passes over them; the main one does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tl.atomic import write_json_atomically
from tl.cache_folder import cache_folder
from tl.data.sources import open_source
from tl.data.split import AnyImages, Source, Split, Target, keep_at_most
from tl.data.streams import BadImages
from tl.domain_gap import (
    domain_accuracy,
    linear_classifier,
    neighbour_plane,
    principal_plane,
    proxy_a_distance,
)
from tl.engine import run_dir, runtime
from tl.engine.evaluation_request import Request
from tl.engine.image_features import image_features
from tl.engine.prepare import network_for
from tl.engine.runtime import Runtime
from tl.engine.score import share_bad_images
from tl.errors import UserError
from tl.models import published, saved
from tl.models.load_report import LoadReport
from tl.models.network import Network
from tl.models.saved import SavedModel
from tl.models.stages import Stage
from tl.tracking.adaptation_plot import plot_adaptation
from tl.tracking.console import ConsoleTracker, open_console
from tl.tracking.domain_plot import Points, plot_domains
from tl.tracking.jsonl import FILE as METRICS
from tl.tracking.jsonl import read
from tl.tracking.tables import table

FEWEST = 10
"""images of a domain; of fewer the accuracy of a classifier of domains says nothing"""

Features = dict[str, np.ndarray]
"""of stages by name: (N, width)"""


@dataclass(frozen=True)
class Seen:
    """What a network makes of images."""

    labels: np.ndarray
    """(N,) int64; −1 where nobody knows"""
    features: Features


def map_domains(asked: Request, images: int) -> dict[str, Any]:
    """Compute and draw what `tl map` leaves in ``asked.output``.

    Args:
        images: at most so many of each domain, chosen by the run's seed.

    Returns:
        What ``domain_map.json`` holds, the same on every process.

    Raises:
        UserError: no run, no target, no source images or too few, other classes than the model's,
            or the weights that the run began with are gone.
    """
    if asked.run is None:
        raise UserError(
            f"{asked.model} is of no run that is there (no config.yaml), so nothing says what it "
            "was before. Give the folder of a run"
        )
    after = saved.load(asked.model)
    here = runtime.start(asked.config)
    console = open_console(None if here.is_main else run_dir.nowhere())
    console.say(here.describe())
    source, target = here.first_on_each_node(lambda: _domains(asked, after))
    weights = asked.config.model.weights
    here.first_on_each_node(lambda: published.download(asked.config.model.name, weights))
    network, preprocessing, report = here.on_all(lambda: network_for(asked.config, after.classes))
    before = SavedModel(network, after.classes, preprocessing)

    seed, last = asked.config.seed, network.stages[-2].name
    known = _known_stage(network, report)
    stages = list(dict.fromkeys([known, last]))
    parts: list[AnyImages] = [keep_at_most(source.val, seed, images)]
    parts.append(keep_at_most(target.test, seed, images))
    bad = BadImages(asked.config.data.bad_images, asked.config.data.max_bad_images)
    seen = {}
    for name, model in (("before", before), ("after", after)):
        wanted = [*stages, model.network.stages[-1].name]
        for domain, part in zip(("source", "target"), parts, strict=True):
            console.say(f"{name}: {len(part):,} images of the {domain}")
            labels = part.labels if isinstance(part, Split) else None
            seen[name, domain] = _seen(asked, model, part, labels, wanted, here, bad)
    learnt = None
    if _is_new(network, network.stages[-1], report) and isinstance(parts[1], Split):
        some = keep_at_most(source.train, seed, images)
        console.say(f"before: {len(some):,} training images of the source")
        learnt = _seen(asked, before, some, some.labels, [known], here, bad)
    for reason in sorted(bad.reasons.values()):
        console.say(f"left out, cannot be decoded: {reason}")

    def on_main() -> dict[str, Any]:
        rows = [
            _row(name, stage, seen[name, "source"], seen[name, "target"], seed)
            for name in ("before", "after")
            for stage in stages
        ]
        console.say("drawing")
        found: dict[str, Any] = {
            "run": str(asked.run),
            "weights_before": report.source if report.loaded else None,
            "source": {"name": source.name, "images": len(seen["before", "source"].labels)},
            "target": {"name": target.name, "images": len(seen["before", "target"].labels)},
            "seed": seed,
            "before": dict(rows[0]),
            "after": dict(rows[-1]),
            "all": rows,
        }
        accuracies = None
        if isinstance(parts[1], Split):
            accuracies = _accuracies(after.classes, network, known, seen, learnt)
            found |= accuracies
        _write(asked, found, after.classes, seen, accuracies)
        return found

    found = here.on_main(on_main)
    _show(console, found, asked.output)
    runtime.stop()
    return found


def _domains(asked: Request, model: SavedModel) -> tuple[Source, Target]:
    index = cache_folder(asked.config.cache) / "index"
    source = open_source(asked.config.data, asked.config.seed, index, model.classes)
    if source.target is None:
        raise UserError(
            f"{asked.run} has no target, so there is one domain. Say which other one to look at: "
            "data.target_root=FOLDER, or data.source_domains=[NAME] data.target_domain=NAME"
        )
    if not source.is_labelled:
        raise UserError(
            f"{asked.run} had a target alone, and there are no images of its source. Give them: "
            "data.source_root=FOLDER"
        )
    if list(source.classes) != model.classes:
        raise UserError(
            f"{source.name} has other classes than the model of {asked.run}, or in another order: "
            f"{len(source.classes)} and {len(model.classes)}. Give the data that it was trained on"
        )
    for domain, part in ((source.name, source.val), (source.target.name, source.target.test)):
        if len(part) < FEWEST:
            raise UserError(
                f"{domain} has {len(part)} images to look at; it takes {FEWEST} of each domain to "
                "say how far they are apart. See data.max_val, data.val_fraction, data.max_target"
            )
    return source, source.target


def _known_stage(network: Network, report: LoadReport) -> str:
    """The last stage before the head behind which nothing is random; the very last if all is."""
    body = network.stages[:-1]
    for before, stage in pairwise(body):
        if report.loaded and _is_new(network, stage, report):
            return before.name
    return body[-1].name


def _is_new(network: Network, stage: Stage, report: LoadReport) -> bool:
    learnt = (name for name, _ in network.model.named_parameters() if name in report.new)
    return any(stage.owns_name(name) for name in learnt)


def _seen(
    asked: Request,
    model: SavedModel,
    images: AnyImages,
    labels: np.ndarray | None,
    stages: list[str],
    here: Runtime,
    bad: BadImages,
) -> Seen:
    """What the main process needs to know; the others get nothing of it."""
    ids, outputs = image_features(
        asked.config,
        model.network,
        model.preprocessing,
        images,
        stages,
        here,
        asked.batch_size,
        bad,
    )
    share_bad_images(here, bad)
    parts = here.to_main((ids, outputs))
    if not parts:
        return Seen(np.zeros(0, dtype=np.int64), {})
    all_ids = torch.cat([ids for ids, _ in parts])
    order = all_ids.argsort()
    features = {name: torch.cat([x[name] for _, x in parts])[order].numpy() for name in stages}
    if labels is None:
        labels = np.full(len(images), -1, dtype=np.int64)
    return Seen(labels[all_ids[order].numpy()], features)


def _row(name: str, stage: str, source: Seen, target: Seen, seed: int) -> dict[str, Any]:
    """How far the domains are apart in what a stage puts out."""
    a, b = source.features[stage], target.features[stage]
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError(
            f"{name} adaptation the output of {stage} is not finite for some images. Give "
            "mixed_precision=no"
        )
    if min(len(a), len(b)) < FEWEST:
        raise UserError(f"only {len(a)} and {len(b)} images of the domains could be decoded")
    accuracy = domain_accuracy(a, b, seed)
    return {
        "network": name,
        "stage": stage,
        "width": a.shape[1],
        "domain_accuracy": accuracy,
        "proxy_a_distance": proxy_a_distance(accuracy),
    }


def _accuracies(
    classes: Sequence[str],
    before: Network,
    stage: str,
    seen: dict[tuple[str, str], Seen],
    learnt: Seen | None,
) -> dict[str, Any]:
    """Accuracy on the target by its labels, in all and for each class."""
    labels = seen["before", "target"].labels
    head = before.stages[-1].name
    by, predicted = "its own head", seen["before", "target"].features[head].argmax(1)
    if learnt is not None:
        by = f"a linear classifier of {len(learnt.labels):,} source images"
        classifier = linear_classifier(learnt.features[stage], learnt.labels)
        predicted = classifier.predict(seen["before", "target"].features[stage])
    right = {
        "before": predicted == labels,
        "after": seen["after", "target"].features[head].argmax(1) == labels,
    }
    rows = []
    for i, name in enumerate(classes):
        mine = labels == i
        accuracy = {k: float(r[mine].mean()) if mine.any() else None for k, r in right.items()}
        rows.append({"class": name, "images": int(mine.sum()), **accuracy})
    return {
        "target_accuracy": {name: float(r.mean()) for name, r in right.items()},
        "before_classifies_by": by,
        "per_class": rows,
    }


def _write(
    asked: Request,
    found: dict[str, Any],
    classes: Sequence[str],
    seen: dict[tuple[str, str], Seen],
    accuracies: dict[str, Any] | None,
) -> None:
    """Project, draw and write; the variance that is seen is added to ``found``."""
    panels = []
    for name in ("before", "after"):
        row = found[name]
        stage = row["stage"]
        domains = [seen[name, domain] for domain in ("source", "target")]
        x = np.concatenate([each.features[stage] for each in domains])
        plane, variance = principal_plane(x)
        labels = np.concatenate([each.labels for each in domains])
        is_target = np.repeat([False, True], [len(each.labels) for each in domains])
        row["pca_explained_variance"] = variance
        title = f"{name}: {stage}, {row['width']:,} wide"
        told = (
            f"domain told of {row['domain_accuracy']:.0%} of images, "
            f"A-distance {row['proxy_a_distance']:.2f}"
        )
        near = neighbour_plane(x, found["seed"])
        panels.append(Points(title, told, plane, variance, near, labels, is_target))
    assert asked.run is not None
    lines = read(asked.run / METRICS)
    try:
        asked.output.mkdir(parents=True, exist_ok=True)
        plot_domains(panels, classes, asked.output / "domain_map.png")
        plot_adaptation(lines, accuracies, asked.output / "adaptation.png")
        write_json_atomically(asked.output / "domain_map.json", found)
    except OSError as error:
        raise UserError(f"cannot write to --output {asked.output}: {error.strerror}") from error


def _show(console: ConsoleTracker, found: dict[str, Any], output: Path) -> None:
    columns = ["network", "stage", "width", "domain_accuracy", "proxy_a_distance"]
    title = "how well a linear classifier tells the domain of an image (0.5: by chance)"
    rows = [[row[key] for key in columns] for row in found["all"]]
    console.show(table(title, [c.replace("_", " ") for c in columns], rows))
    if "target_accuracy" in found:
        accuracy = found["target_accuracy"]
        console.say(
            f"accuracy on the target, by its labels: {accuracy['before']:.4f} before (by "
            f"{found['before_classifies_by']}), {accuracy['after']:.4f} after"
        )
    console.say(f"written: {output / 'domain_map.json'}, domain_map.png and adaptation.png")
