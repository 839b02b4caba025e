"""The model card, README.md: what the model is, how good, how to use it, what it cannot do.

Its header is what Hugging Face reads (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl import yaml12
from tl.errors import printable
from tl.export.check import TOLERANCE, Comparison
from tl.export.facts import Facts
from tl.export.int8 import Int8
from tl.export.markdown import plain, rows
from tl.export.plain import described, library_of
from tl.export.wish import Wish
from tl.models.saved import SavedModel
from tl.report.numbers import wilson

_SHOWN = 100  # classes; all of them are in config.json
_FEW = 1000  # validation images; fewer leave an accuracy of 0.9 uncertain by 0.02 or more
TRAINING = "training.yaml"
"""the run's config in an exported folder"""


@dataclass(frozen=True)
class Findings:
    """What was measured while exporting."""

    images: str
    """where they are from, in words"""
    comparison: Comparison
    right: int | None
    """of the images; None: nobody knows their classes"""
    from_files: Comparison | None
    """with the other program's own preprocessing, where it has one"""
    int8: Int8 | None
    versions: dict[str, str]


def card(
    model: SavedModel, wish: Wish, facts: Facts, found: Findings, snippet: Sequence[str]
) -> str:
    """The text of README.md."""
    name = wish.asked.model.resolve().name
    parts = [
        "---\n" + yaml12.dump(_header(name, model, wish, found)) + "---",
        f"# {plain(name)}",
        f"{plain(described(model))}, for {len(model.classes):,} classes; made by transfer-launcher "
        f"and exported by `tl export --to {wish.format}`.",
        "## Classes",
        _classes(model.classes),
        "## Use",
        "```python\n" + "\n".join(snippet) + "\n```",
        "Run it in this folder, with an image called image.jpg.",
        _inside(model, wish),
        "## Accuracy",
        _accuracy(facts, found),
        "## Training",
        _training(facts),
        "## Checked",
        _checked(wish, found),
        "## Limits",
        _limits(facts, found),
    ]
    return "\n\n".join(parts) + "\n"


def _header(name: str, model: SavedModel, wish: Wish, found: Findings) -> dict[str, Any]:
    libraries = {"onnx": "onnx", "timm": "timm", "huggingface": "transformers"}
    name = printable(name)
    header: dict[str, Any] = {
        "license": wish.licence or "unknown",
        "library_name": libraries.get(wish.format, library_of(model.network)),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "transfer-learning", wish.format],
    }
    if found.right is not None:
        share = round(found.right / found.comparison.images, 4)
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": printable(found.images), "type": "image-folder"},
            "metrics": [{"type": "accuracy", "value": share}],
        }
        header |= {"metrics": ["accuracy"], "model-index": [{"name": name, "results": [result]}]}
    return header


def _classes(classes: Sequence[str]) -> str:
    text = rows(["output", "class"], list(enumerate(classes))[:_SHOWN])
    more = len(classes) - _SHOWN
    return text + (f"\n\nand {more:,} more, in config.json." if more > 0 else "")


def _inside(model: SavedModel, wish: Wish) -> str:
    p = model.preprocessing
    colours = "grey" if p.channels == 1 else "RGB"
    lines = [
        f"Images are {colours}: the shorter edge is resized to {p.resize_size} ({p.interpolation}, "
        f"antialiased), the middle {p.crop_size} × {p.crop_size} cut out, scaled to 0…1, mean "
        f"{_numbers(p.mean)} subtracted and divided by {_numbers(p.std)}."
    ]
    if wish.with_preprocessing:
        lines.append(
            "Normalisation and softmax are in the graph: it takes uint8 of 0…255, "
            f"(N, {p.channels}, {p.crop_size}, {p.crop_size}), and puts out logits and "
            "probabilities."
        )
    if wish.format == "torch-export":
        lines.append(
            "`torch.export.load` unpickles a part of the file: load it only if you trust where it "
            "comes from."
        )
    return " ".join(lines)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _accuracy(facts: Facts, found: Findings) -> str:
    lines = []
    if found.right is not None:
        count = found.comparison.images
        low, high = wilson(found.right, count)
        lines.append(
            f"{found.right / count:.4f}: {found.right:,} of {count:,} images "
            f"({plain(found.images)}), 95 % interval (Wilson) {low:.3f} to {high:.3f}."
        )
    else:
        lines.append("Not measured: the images that it was checked on have no labels.")
    whole = facts.summary.get("val/accuracy")
    if isinstance(whole, float):
        lines.append(f"The run's own figure, of all of its validation images: {whole:.4f}.")
    return " ".join(lines)


def _training(facts: Facts) -> str:
    config, summary = facts.config, facts.summary
    optimizer = config.get("optimizer")
    values: dict[str, Any] = {
        "began with": facts.start,
        "strategy": "; ".join(facts.phases) or None,
        "epochs": config.get("epochs"),
        "optimizer": f"{optimizer.get('name')}, lr {optimizer.get('lr')}"
        if isinstance(optimizer, dict)
        else None,
        "data": facts.data,
        "training images": facts.training_images,
        "validation images": facts.validation_images,
        "steps": summary.get("steps"),
        "trained parameters": summary.get("trainable_parameters"),
        "best": f"by {summary['best_metric']}, at step {summary.get('best_step')}"
        if "best_metric" in summary
        else None,
    }
    known = [(key, value) for key, value in values.items() if value is not None]
    if not known:
        return "Not known: this model came without the folder of its run."
    data = config.get("data")
    of_folder = isinstance(data, dict) and data.get("root") is not None
    where = " data.root=FOLDER" if of_folder else ""
    again = f"tl train {TRAINING}{where} run_dir=again"
    return (
        f"{rows(['', ''], known)}\n\nThe same again{', with the images in FOLDER' * of_folder}:\n\n"
        f"```bash\n{again}\n```"
    )


def _checked(wish: Wish, found: Findings) -> str:
    lines = [
        f"Loaded afresh from this folder and compared with the run's own pipeline in float32 on "
        f"{plain(found.images)}, the same pixels for both, in batches of 1, 2, 7 and "
        f"{wish.asked.batch_size}: {found.comparison}. Allowed are {TOLERANCE:g} of the largest "
        "logit, as sums are taken in another order."
    ]
    if found.from_files is not None:
        c = found.from_files
        lines.append(
            f"From the images' files, with this format's own preprocessing: probabilities differ "
            f"by {c.probabilities:.2g} at most (logits by {c.logits:.2g}), the same class for "
            f"{c.same_class:,} of {c.images:,}. What differs is how it resizes and where it cuts."
        )
    if found.int8 is not None:
        lines.append(
            f"`model.int8.onnx`, weights and layers' inputs in 8 bits: {found.int8}. The range of "
            "a layer's input is that of the whole batch, so an image's result may depend on the "
            "others of its batch."
        )
    lines.append("With " + ", ".join(f"{k} {v}" for k, v in found.versions.items()) + ".")
    return "\n\n".join(lines)


def _limits(facts: Facts, found: Findings) -> str:
    lines = ["It calls every image one of its classes, also one that shows none of them."]
    if found.right is not None:
        count = found.comparison.images
        if count < _FEW:
            low, high = wilson(found.right, count)
            lines.append(
                f"{count:,} images are few: the accuracy on others like them may well be anything "
                f"from {low:.2f} to {high:.2f}."
            )
    if facts.summary.get("best_metric"):
        lines.append(
            "The best of the run's models was chosen on its validation images, so on others it "
            "will be a little worse."
        )
    lines.append("Images that were taken in another way than those it was trained on: not tested.")
    lines.append("The licence of the weights that it began with, and of the data, is not checked.")
    return "\n".join(f"- {line}" for line in lines)
