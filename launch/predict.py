"""Predict: the entry point for `accelerate launch`, `torchrun`, `python` and `tl predict`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code, fraction

EPILOG = """\
PATH is an image, a folder (searched at any depth), a pattern such as 'photos/**/*.jpg' in quotes,
or - for a list of paths on standard input. Images are in the order of the PATHs, those of a folder
or pattern sorted, then those of --csv; each once however often it is named. Of a folder, the files
count that counted in training (data.extensions); transparent images are put on the same colour
(data.background).

CSV: a row for each image with path, class, confidence and p(NAME) for every class; with --top-k
class1, p1, class2, p2, ... in place of the latter, the most probable first. JSON lines:
{"path", "class", "confidence", "probabilities": {NAME: p}}, or "top": [{"class", "probability"}].

FILE appears when it is complete, in place of an old one. Until then what is done lies in
FILE.partial: after a crash the same command goes on, on any number of processes, and ends with the
same FILE. Messages go to standard error. More is in docs/predict.md.

  tl predict runs/flowers photos/ > predictions.csv
  find photos -name '*.jpg' -print0 | tl predict runs/flowers - -0 --output predictions.csv
  tl predict runs/flowers photos/ --output predictions.csv --features features.npy
  accelerate launch launch/predict.py runs/flowers photos/ --output predictions.jsonl --top-k 3
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl predict",
        description="Classes and probabilities for images, by a run's model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", type=Path, metavar="RUN_DIR | MODEL_DIR")
    made.add_argument("paths", nargs="*", metavar="PATH", help="images; see below")
    which = made.add_argument_group("images")
    which.add_argument("--csv", metavar="FILE", help="a CSV file with paths, relative to itself")
    which.add_argument("--column", default="path", metavar="NAME", help="its column; default: path")
    which.add_argument(
        "-0", "--null", action="store_true", help="paths on standard input end with NUL bytes"
    )
    which.add_argument(
        "--bad-images",
        choices=("error", "skip", "row"),
        default="error",
        help="an image that cannot be decoded is an error (default), or it is named, counted, "
        "and gets no row, or a row that says why in a column `error`",
    )
    said = made.add_argument_group("what is written")
    said.add_argument("--output", metavar="FILE", help="default: standard output")
    said.add_argument(
        "--format", choices=("csv", "jsonl"), help="default: by the ending of FILE, else csv"
    )
    said.add_argument(
        "--top-k", "--top", type=at_least(1), metavar="K", help="the K most probable classes only"
    )
    said.add_argument(
        "--probabilities", action="store_true", help="those of all classes beside --top-k's"
    )
    said.add_argument(
        "--threshold",
        type=fraction,
        default=0.0,
        metavar="P",
        help="name no class where the confidence is lower: class is empty, in JSON null",
    )
    said.add_argument(
        "--features",
        metavar="FILE",
        help=".npy or .safetensors, float32 (images, features): what goes into the head, pooled; "
        "the column `row` of --output says which row is which image's",
    )
    said.add_argument(
        "--features-from", metavar="STAGE", help="what comes out of another stage, pooled"
    )
    said.add_argument(
        "--cam", metavar="FOLDER", help="a picture for each image of what its class goes by"
    )
    said.add_argument("--cam-class", metavar="NAME", help="of what this class goes by instead")
    said.add_argument("--overwrite", action="store_true", help="throw away what is in FILE.partial")
    how = made.add_argument_group("how")
    how.add_argument(
        "--tta",
        type=_views,
        metavar="flip|N",
        help="mean of the probabilities of the image and its mirror image, or of N views: the "
        "usual one and N - 1 crops",
    )
    how.add_argument(
        "--batch-size", type=at_least(1), metavar="N", help="default: 64, on a GPU 256"
    )
    how.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="loader processes of each process; default: from the cores of the node",
    )
    how.add_argument(
        "--mixed-precision",
        choices=("auto", "no", "bf16", "fp16"),
        default="auto",
        help="as the key of a run; auto (default): the launcher's, else what the device has",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    made = parser()
    arguments = made.parse_intermixed_args(argv)
    if not arguments.paths and arguments.csv is None:
        made.error("the following arguments are required: PATH, or --csv FILE")
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl.data.image_paths import Inputs
    from tl.engine.prediction_request import (
        Listing,
        Request,
        cam_folder,
        features_file,
        output_and_format,
    )

    output, format_name = output_and_format(arguments.output, arguments.format)
    request = Request(
        model=arguments.model,
        inputs=Inputs(arguments.paths, arguments.csv, arguments.column, arguments.null),
        output=output,
        format=format_name,
        probabilities=arguments.probabilities or arguments.top_k is None,
        top_k=arguments.top_k,
        threshold=arguments.threshold,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        bad_images=arguments.bad_images,
        features=features_file(arguments.features, output),
        features_from=arguments.features_from,
        tta=arguments.tta,
        cam=cam_folder(arguments.cam),
        cam_class=arguments.cam_class,
        mixed_precision=arguments.mixed_precision,
        overwrite=arguments.overwrite,
    )
    request.check()
    listing = Listing(request)
    try:
        if os.environ.get("WORLD_SIZE", "1") == "1":  # several list them when all are there
            listing.made()

        # Only now: torch and its company take seconds to import.
        from tl.engine.predict import predict

        predict(request, listing)
    except BaseException:
        if (folder := listing.leave()) is not None:
            print(f"what is done stays in {folder}", file=sys.stderr, flush=True)
        raise


def _views(text: str) -> str:
    if text != "flip" and not (text.isdecimal() and 2 <= int(text) <= MOST_VIEWS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither flip nor a whole number from 2 to {MOST_VIEWS}"
        )
    return text


MOST_VIEWS = 100


if __name__ == "__main__":
    sys.exit(main())
