"""A tiny model, images, and real processes: what the tests of the entry points share."""

import csv
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch import predict
from tl.data.transforms import normalise, plain_view
from tl.models import saved, zoo
from tl.models.preprocessing import preprocessing_of, with_image_size

ROOT = Path(__file__).parents[2]
CLASSES = ["ant", "bee", "Käfer, groß"]
# Of probabilities in float32, which a file has with six digits, against float64.
TOLERANCE = 2e-6


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run's folder with a model in it, and no config."""
    torch.manual_seed(0)
    network = zoo.build("shufflenet_v2_x0_5", len(CLASSES), 32)
    preprocessing = with_image_size(preprocessing_of("shufflenet_v2_x0_5", None), 32)
    folder = tmp_path_factory.mktemp("run")
    # A new network says nearly the same of all images: give it statistics, and equal classes.
    view = plain_view(preprocessing)
    x = normalise(torch.stack([view(picture(seed)) for seed in range(100, 164)]), preprocessing)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(x)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):  # a small one would magnify rounding
                buffer.clamp_(min=1.0)
        network.model.fc.weight.normal_()
        network.model.fc.bias -= network.eval()(x).mean(0)
    saved.save(network, CLASSES, preprocessing, folder / "model")
    return folder


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC)


def write_image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, "PNG")
    return path


@pytest.fixture
def labelled(tmp_path):
    """16 images in the folders of the three classes."""
    for i in range(16):
        write_image(tmp_path / "data" / CLASSES[i % 3] / f"{i}.png", i)
    return tmp_path / "data"


def run_predict(*arguments) -> int:
    """`tl predict` in this process: its exit code."""
    return predict.main([str(argument) for argument in arguments])


def read_csv(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def start(command, *arguments, processes=1, **options):
    """Run an entry point in processes of its own, for real."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "TL_"))}
    words = [sys.executable]
    if processes > 1:
        environ["ACCELERATE_USE_CPU"] = "true"
        words += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        words += ["--num_processes", str(processes), "--mixed_precision", "no"]
        words += ["--dynamo_backend", "no", "--main_process_port", "0"]
    words += [str(ROOT / "launch" / f"{command}.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, env=environ, timeout=200, **options)


def call_main(command, *arguments):
    """For `gloo_workers`, which have torch imported: exit code, standard output and error of main.

    By the file descriptors, as a launcher would have them.
    """
    main = importlib.import_module(f"launch.{command}").main
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        for number, file in enumerate((out, errors), 1):
            os.dup2(file.fileno(), number)
        try:
            code = main([str(argument) for argument in arguments])
        finally:
            for number, before in enumerate(kept, 1):
                (sys.stdout, sys.stderr)[number - 1].flush()
                os.dup2(before, number)
                os.close(before)
        said = []
        for file in (out, errors):
            file.seek(0)
            said.append(file.read())
    return code, *said


def call_main_with_one_thread(command, *arguments):
    """`call_main`, with one thread for each process: their number then changes no last bit."""
    os.environ["SLURM_CPUS_ON_NODE"] = os.environ.get("WORLD_SIZE", "1")
    try:
        return call_main(command, *arguments)
    finally:
        del os.environ["SLURM_CPUS_ON_NODE"]
