"""launch/train.py as people start it: the launchers, wrong input, Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from gloo_workers import GlooWorkers
from PIL import Image
from torchvision import models

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "launch" / "train.py")
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}
BIN = Path(sys.executable).parent
ACCELERATE = [str(BIN / "accelerate"), "launch", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
LAUNCHERS = {
    "python": [sys.executable],
    "torchrun-2": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"],
    "accelerate-1": [*ACCELERATE, "--num_processes", "1"],
    "accelerate-2": [
        str(BIN / "accelerate"),
        "launch",
        "--config_file",
        str(ROOT / "configs" / "accelerate" / "cpu_2_processes.yaml"),
    ],
}
SMALL = [
    "data.source=digits",
    "data.image_size=32",
    "data.max_train=13",
    "data.max_val=13",
    "data.workers=0",
    "model.name=squeezenet1_1",
    "model.weights=null",
    "strategy=head",
    "global_batch_size=8",
    "epochs=2",
]


def launch(launcher: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environ = dict(ENVIRONMENT)
    if "--config_file" in LAUNCHERS[launcher]:  # which is to say it
        environ.pop("ACCELERATE_USE_CPU", None)
    return subprocess.run(
        [*LAUNCHERS[launcher], TRAIN, *arguments],
        capture_output=True, text=True, cwd=cwd, env=environ, timeout=200,
    )  # fmt: skip


def launchers_agree(launchers: Iterable[str], folder: Path, images: int) -> None:
    """From any folder: the runs are started from a temporary one."""
    summaries = {}
    sizes = (f"data.max_train={images}", f"data.max_val={images}")
    for launcher in launchers:
        done = launch(launcher, *SMALL, *sizes, f"run_dir={launcher}", cwd=folder)
        assert done.returncode == 0, done.stderr
        if launcher.endswith("-2"):
            assert done.stdout.startswith("2 processes, gloo · cpu · float32 · ")
        summaries[launcher] = json.loads((folder / launcher / "summary.json").read_text())
    reference = summaries["python"]
    for launcher, summary in summaries.items():
        assert summary["num_processes"] == (2 if launcher.endswith("-2") else 1)
        assert summary["val/accuracy"] == reference["val/accuracy"]
        assert summary["last/val/accuracy"] == reference["last/val/accuracy"]
        # Float32 sums in another order, over four steps of a convex problem.
        assert summary["val/loss"] == pytest.approx(reference["val/loss"], rel=1e-5)
        for exact in ("steps", "images", "trainable_parameters", "frozen_parameters", "best_step"):
            assert summary[exact] == reference[exact]


@pytest.mark.slow
def test_all_launchers_give_the_same_summary(tmp_path: Path) -> None:
    """Other numbers of images, from one on and on more processes, are in `test_same_run.py`."""
    launchers_agree(LAUNCHERS, tmp_path, images=53)


@pytest.mark.slow
def test_a_launcher_that_starts_fewer_processes_than_asked_for_is_found_out(tmp_path: Path) -> None:
    command = [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "2", TRAIN, *SMALL]
    done = subprocess.run(
        [*command, f"run_dir={tmp_path / 'run'}"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert "asked for 2 processes, but started one" in done.stderr
    assert "configs/accelerate/cpu_2_processes.yaml" in done.stderr
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a session of its own, as a terminal has it. Nothing of it is left at the end."""
    process = subprocess.Popen(
        [sys.executable, TRAIN, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_ctrl_c_leaves_a_checkpoint_and_no_process(tmp_path: Path) -> None:
    words = [*SMALL, "epochs=100000", "data.workers=1", f"run_dir={tmp_path / 'run'}"]
    with started(*words) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "a loader worker at least"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        _, errors = process.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while any(child.is_running() for child in children) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [child for child in children if child.is_running()]
    assert process.returncode == 75
    assert "Traceback" not in errors
    assert "SIGINT" in errors
    assert "--resume auto" in errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("preempted", 75)
    assert "SIGINT" in status["message"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{status['step']}").is_dir()


def interrupt_at(start: str, *arguments: str) -> tuple[int, str]:
    """Ctrl-C as soon as a line begins with ``start``; exit code and standard error."""
    with started(*arguments) as process:
        assert process.stdout is not None
        assert any(line.startswith(start) for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.slow
def test_a_quickstart_that_was_interrupted_goes_on_by_the_command_that_it_says(
    tmp_path: Path,
) -> None:
    own = ["seed=3", "tracking.log_every=1", "tracking.trackers=[jsonl, console]"]
    code, errors = interrupt_at("step", *own, f"run_dir={tmp_path / 'a b'}")
    assert code == 75, errors
    command = shlex.split(errors.strip().rpartition("to go on: ")[2])
    assert command == ["tl", "train", *own, f"run_dir={tmp_path / 'a b'}", "--resume", "auto"]
    code, errors = interrupt_at("going on after step", *command[2:])
    assert code in (1, 75), errors  # it was still preparing, or it trained already
    assert json.loads((tmp_path / "a b" / "pretrained" / "status.json").read_text())["step"] > 0


# ------------------------------------------------------------------------------------ wrong input


def call_main(arguments: list[str]) -> tuple[int, str, str]:
    """launch.train.main in a worker: exit code, standard output and standard error."""
    from launch import train

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = train.main(arguments)
        except SystemExit as left:
            code = int(left.code or 0)
    return code, out.getvalue(), errors.getvalue()


def _folder(root: Path, tree: dict[str, int]) -> Path:
    """Images: ``{"train/ants": 2}`` makes two in that folder."""
    for name, count in tree.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 32), (i * 20 % 255, 90, 30)).save(root / name / f"{i}.png")
    return root


class Sentinel:
    """A pickle of it runs code when it is loaded as pickles used to be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


GOOD = {"train/ants": 2, "train/bees": 2, "val/ants": 1, "val/bees": 1}
BAD_INPUT: dict[str, tuple[dict[str, int] | None, list[str], str]] = {
    "missing folder": (None, ["data.root={tmp}/nowhere"], "nowhere does not exist"),
    "empty folder": ({"train": 0}, ["data.root={tmp}"], "{tmp}"),
    "class without images": ({**GOOD, "train/wasps": 0}, ["data.root={tmp}"], "wasps"),
    "one class": ({"train/ants": 2, "val/ants": 1}, ["data.root={tmp}"], "two"),
    "class that train lacks": ({**GOOD, "val/bee": 1}, ["data.root={tmp}"], "'bees'"),
    "no weights file": (GOOD, ["data.root={tmp}", "model.weights={tmp}/val/ants/0.png"], "0.png"),
    "weights that run code": (GOOD, ["data.root={tmp}", "model.weights={tmp}/evil.pth"], "mkdir"),
    "pickle": (GOOD, ["data.root={tmp}", "model.weights={tmp}/evil.pkl"], "evil.pkl"),
    "missing weights": (GOOD, ["data.root={tmp}", "model.weights={tmp}/no.pth"], "no.pth"),
    "misfit": (GOOD, ["data.root={tmp}", "model.weights={tmp}/misfit.pth"], "missing"),
    "architecture": (GOOD, ["data.root={tmp}", "model.name=resnet81"], "'resnet18'"),
    "weights name": (GOOD, ["data.root={tmp}", "model.weights=IMAGENET1K_V9"], "IMAGENET1K_V1"),
    "stage": (GOOD, ["data.root={tmp}", "strategy=from_stage(fire1)"], "fire"),
    "surgical stage": (GOOD, ["data.root={tmp}", "strategy=surgical(fire1)"], "fire2, fire3"),
    "nothing trains": (GOOD, ["data.root={tmp}", "strategy=regex(layer)"], "matches no parameter"),
    "layer decay": (None, ["strategy=layer_decay(2)"], "such as layer_decay(0.75)"),
    "gradual": (GOOD, ["data.root={tmp}", "strategy=gradual(1)", "epochs=5"], "or gradual(3)"),
    "strategy": (GOOD, ["data.root={tmp}", "strategy=haed"], "'head'"),
    "freezing strategy": (GOOD, ["data.root={tmp}", "phases=[{train: hed}]"], "'head'"),
    "rank": (GOOD, ["data.root={tmp}", "strategy=lora(0)"], "lora(8)"),
    "adapted weights": (GOOD, ["data.root={tmp}", "strategy=lora(2, layer4)"], "features.3."),
    "ema": (GOOD, ["data.root={tmp}", "ema=1"], "ema"),
    "objective": (GOOD, ["data.root={tmp}", "objective=supervized"], "'supervised'"),
    "source": (None, ["data.source=digit"], "'digits'"),
    "key": (None, ["optimizer.leraning_rate=1"], "optimizer.leraning_rate"),
    "type": (None, ["epochs=many"], "epochs"),
    "range": (None, ["optimizer.lr=-1"], "optimizer.lr"),
    "sampling": (GOOD, ["data.root={tmp}", "sampling=balancd"], "'balanced'"),
    "share of a class": (GOOD, ["data.root={tmp}", "sampling=weighted(2)"], "from 0 to 1"),
    "balance without images": (
        GOOD,
        ["data.source=digits", "data.max_train=3", "sampling=balanced"],
        "no training images",
    ),
    "metric": (None, ["best.metric=val/acuracy"], "'val/accuracy'"),
    "patience": (None, ["early_stopping.patience=0"], "early_stopping.patience"),
    "tracker": (GOOD, ["data.root={tmp}", "tracking.trackers=[jsnol]"], "'jsonl'"),
    "image size": (GOOD, ["data.root={tmp}", "data.image_size=8"], "image_size"),
    "resume what": (GOOD, ["data.root={tmp}", "--resume", "{tmp}/nowhere"], "nowhere"),
    "other processes": (None, ["num_processes=3"], "num_processes=3"),
    "no target": (GOOD, ["data.root={tmp}", "objective=dann"], "Give data.target_root=FOLDER"),
    "no class in common": (
        {**GOOD, "other/cats": 2},
        ["data.source_root={tmp}", "data.target_root={tmp}/other", "objective=dann"],
        "data.target_labels=none",
    ),
    "empty target": (
        {**GOOD, "other": 0},
        ["data.source_root={tmp}", "data.target_root={tmp}/other", "objective=dann"],
        "{tmp}/other has no images",
    ),
    "target is the source": (
        GOOD,
        ["data.source_root={tmp}", "data.target_root={tmp}/val/..", "objective=dann"],
        "is the folder of the source as well",
    ),
    "domain": (
        {"art/ants": 2, "art/bees": 2, "clip/ants": 2, "clip/bees": 2},
        ["data.root={tmp}", "data.source_domains=[arts]", "data.target_domain=clip"],
        "Did you mean 'art'?",
    ),
    "target alone": (
        {"ants": 2},
        ["data.target_root={tmp}", "objective=dann"],
        "Give data.source_root",
    ),
    "mixed target": (
        {**GOOD, "other/ants": 2},
        ["data.source_root={tmp}", "data.target_root={tmp}/other", "objective=dann", "mixup=0.2"],
        "give mixup=0",
    ),
    "oracle without labels": (
        {**GOOD, "other": 2},
        ["data.source_root={tmp}", "data.target_root={tmp}/other", "best.metric=oracle/accuracy"],
        "no images that it could be measured on",
    ),
    "oracle without a target": (
        GOOD,
        ["data.root={tmp}", "best.metric=oracle/accuracy"],
        "no images that it could be measured on",
    ),
    "label-free without a target": (
        GOOD,
        ["data.root={tmp}", "best.metric=target/im"],
        "no images that it could be measured on",
    ),
    "sampling of one domain": (
        GOOD,
        ["data.root={tmp}", "sampling=domains"],
        "name them in data.source_domains",
    ),
    "fp16 on a CPU": (GOOD, ["data.root={tmp}", "mixed_precision=fp16"], "fp16"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_exit_code_2_one_clear_line_and_nothing_written(
    gloo_workers: GlooWorkers, tmp_path: Path, case: str
) -> None:
    tree, arguments, expected = BAD_INPUT[case]
    data, run_dir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    _folder(data, tree or {})
    torch.save(Sentinel(tmp_path / "ran"), data / "evil.pth")
    (data / "evil.pkl").write_bytes(pickle.dumps(Sentinel(tmp_path / "ran")))
    torch.save({"fc.weight": torch.zeros(2, 2)}, data / "misfit.pth")
    own = [argument.replace("{tmp}", str(data)) for argument in arguments]
    common = ["model.name=squeezenet1_1", "model.weights=null", f"run_dir={run_dir}"]
    [(code, _, errors)] = gloo_workers.run(1, call_main, [*common, *own])
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    assert expected.replace("{tmp}", str(data)) in errors
    assert not run_dir.exists()
    assert not (tmp_path / "ran").exists()


def test_a_user_may_choose_the_best_by_the_labels_of_the_target_where_there_are_any(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    root = _folder(tmp_path / "data", {**GOOD, "other/ants": 2, "other/bees": 2})
    common = ["model.name=squeezenet1_1", "model.weights=null", "data.image_size=32", "epochs=1",
              f"data.source_root={root}", f"data.target_root={root / 'other'}", "data.workers=0",
              "objective=mcc", "tracking.trackers=[jsonl]"]  # fmt: skip
    for metric, chosen in (("auto", "target/im"), ("oracle/accuracy", "oracle/accuracy")):
        run_dir = tmp_path / chosen.replace("/", "-")
        own = [*common, f"best.metric={metric}", f"run_dir={run_dir}"]
        [(code, out, errors)] = gloo_workers.run(1, call_main, own)
        assert code == 0, errors
        assert json.loads((run_dir / "summary.json").read_text())["best_metric"] == chosen
        first = {"target/im": "target im", "oracle/accuracy": "oracle acc"}[chosen]
        assert re.search(rf" step +epoch +phase +{first} ", out), "of the table at the end"


NAMES = {
    "model.name": ("resnet81", "resnet18"),
    "model.weights": ("IMAGENET1K_V9", "IMAGENET1K_V1"),
    "strategy": ("haed", "head"),
    "phases": ("[{train: hed}]", "head"),
    "objective": ("supervized", "supervised"),
    "data.source": ("digit", "digits"),
    "tracking.trackers": ("[jsnol]", "jsonl"),
    "augment": ("standrd", "standard"),
    "schedule.name": ("cosin", "cosine"),
    "optimizer.name": ("sdg", "sgd"),
}


@pytest.mark.parametrize("key", NAMES)
def test_an_unknown_name_offers_the_nearest_and_says_where_it_came_from(
    gloo_workers: GlooWorkers, tmp_path: Path, key: str
) -> None:
    name, nearest = NAMES[key]
    common = ["data.max_train=9", "data.image_size=32", f"run_dir={tmp_path / 'run'}"]
    common += [] if key == "model.weights" else ["model.weights=null"]
    file, group = tmp_path / "config.yaml", key.split(".")
    file.write_text("seed: 1\n" + ":\n  ".join(group) + f": {name}\n")
    for given, place in (
        ([f"{key}={name}"], f"(command line: {key}={name})"),
        ([str(file)], f"({file}:{1 + len(group)})"),
    ):
        [(code, _, errors)] = gloo_workers.run(1, call_main, [*given, *common])
        assert code == 2
        assert f"Did you mean '{nearest}'?" in errors
        assert errors.rstrip().endswith(place)


def test_a_part_that_cannot_train_is_blamed_on_what_names_it(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    for strategy in ("head(2)", "from_stage(fire1)", "regex(zzz)", "last_stages(99)"):
        arguments = [*SMALL, f"strategy={strategy}", f"run_dir={tmp_path / 'run'}"]
        [(code, _, errors)] = gloo_workers.run(1, call_main, arguments)
        assert code == 2
        assert f"(command line: strategy={strategy})" in errors


def test_a_name_of_timm_is_checked_like_others(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    arguments = [*SMALL, "model.name=timm:resnet10t", f"run_dir={tmp_path / 'run'}", "--dry-run"]
    [(code, _, errors)] = gloo_workers.run(1, call_main, arguments)
    assert code == 0, errors
    [(code, _, errors)] = gloo_workers.run(1, call_main, [*arguments, "model.name=timm:resnet5"])
    assert code == 2
    assert "Did you mean 'timm:resnet50'?" in errors
    assert "(command line: model.name=timm:resnet5)" in errors


def test_a_mistake_is_said_by_the_main_process_alone(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    arguments = [*SMALL, "strategy=from_stage(fire1)", f"run_dir={tmp_path / 'run'}"]
    (code, _, errors), (other_code, other_out, other_errors) = gloo_workers.run(
        2, call_main, arguments
    )
    assert (code, other_code) == (2, 2)
    assert "fire1" in errors
    assert (other_out, other_errors) == ("", "")


def test_a_batch_smaller_than_the_number_of_processes_is_refused(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    arguments = [*SMALL, "phases=[{train: head}, {train: full, global_batch_size: 2}]"]
    results = gloo_workers.run(3, call_main, [*arguments, f"run_dir={tmp_path / 'run'}"])
    assert [code for code, _, _ in results] == [2, 2, 2]
    assert "global_batch_size=2 is smaller than the number of processes, 3" in results[0][2]


def test_a_dry_run_shows_the_freeze_plan_and_writes_nothing(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    arguments = [*SMALL, "strategy=last_stages(2)", f"run_dir={tmp_path / 'run'}", "--dry-run"]
    [(code, out, errors)] = gloo_workers.run(1, call_main, arguments)
    assert code == 0, errors
    assert "last_stages(2) trains" in out
    assert "fire9" in out
    assert not (tmp_path / "run").exists()


BATCH_NORM = {
    "full": ("full", "train", True),
    "norm": ("norm", "train", True),
    "last": ("last_stages(2)", "train", True),
    "sync": ("full", "sync", False),
    "frozen": ("full", "frozen", False),
    "head": ("head", "train", False),
    # BatchNorm whose weight is frozen keeps its statistics, also where its bias trains.
    "bias": ("bias", "train", False),
}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_plan_says_that_results_depend_on_the_processes_exactly_when_they_do(
    gloo_workers: GlooWorkers, processes: int
) -> None:
    phases = [f"{{name: {n}, train: {t}, batch_norm: {b}}}" for n, (t, b, _) in BATCH_NORM.items()]
    arguments = [*SMALL, "model.name=resnet18", f"phases=[{', '.join(phases)}]", "--dry-run"]
    code, out, errors = gloo_workers.run(processes, call_main, arguments)[0]
    assert code == 0, errors
    plans = dict(
        re.findall(r"^phase (\w+): (.*?)(?=^phase|^dry run)", out, re.DOTALL | re.MULTILINE)
    )
    depends = {name for name, plan in plans.items() if "note: BatchNorm that trains" in plan}
    assert plans.keys() == BATCH_NORM.keys()
    assert depends == {name for name, case in BATCH_NORM.items() if case[2] and processes > 1}


def test_a_run_dir_that_cannot_be_written_is_bad_input(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        [(code, _, errors)] = gloo_workers.run(1, call_main, [*SMALL, f"run_dir={run_dir}"])
        assert code == 2, errors
        assert str(run_dir) in errors


@pytest.mark.parametrize("world_size", [1, 2])
def test_bad_images_are_skipped_named_once_and_counted(
    gloo_workers: GlooWorkers, tmp_path: Path, world_size: int
) -> None:
    root = _folder(tmp_path / "data", {**GOOD, "train/wasps": 7, "val/wasps": 2})
    for bad in ("train/wasps/3.png", "train/ants/0.png", "val/wasps/1.png"):
        (root / bad).write_bytes(b"no image")
    common = ["model.name=squeezenet1_1", "model.weights=null", "data.image_size=32",
              f"data.root={root}", "data.bad_images=skip", "epochs=3", "global_batch_size=4",
              "data.workers=0", f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    results = gloo_workers.run(world_size, call_main, common)
    code, out, errors = results[0]
    assert code == 0, errors
    for bad in ("train/wasps/3.png", "train/ants/0.png", "val/wasps/1.png"):
        assert out.count(bad) == 1, out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bad_images"] == 3
    assert summary["images"] == 3 * (11 - 2)


@pytest.mark.parametrize("cached", ["false", "true"])
def test_bad_images_of_one_name_in_source_and_target_are_two(
    gloo_workers: GlooWorkers, tmp_path: Path, cached: str
) -> None:
    source = _folder(tmp_path / "source", GOOD)
    target = _folder(tmp_path / "target", {"train/ants": 4, "train/bees": 4, "val/ants": 2})
    bad = [root / "train" / "ants" / "0.png" for root in (source, target)]
    for path in bad:
        path.write_bytes(b"no image")
    arguments = ["model.name=squeezenet1_1", "model.weights=null", "data.image_size=32",
                 f"data.source_root={source}", f"data.target_root={target}", "objective=mcc",
                 "strategy=head", "data.bad_images=skip", "epochs=2", "global_batch_size=4",
                 f"cache.features={cached}", f"cache.folder={tmp_path / 'cache'}",
                 "data.workers=0", f"run_dir={tmp_path / 'run'}"]  # fmt: skip
    [(code, out, errors)] = gloo_workers.run(1, call_main, arguments)
    assert code == 0, errors
    assert [out.count(str(path)) for path in bad] == [1, 1], out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["bad_images"] == 2


def test_a_bad_image_is_an_error_that_names_the_file_and_the_mend(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    root = _folder(tmp_path / "data", GOOD)
    (root / "train/ants/0.png").write_bytes(b"no image")
    arguments = ["model.name=squeezenet1_1", "model.weights=null", "data.image_size=32",
                 f"data.root={root}", f"run_dir={tmp_path / 'run'}", "data.workers=1"]  # fmt: skip
    [(code, _, errors)] = gloo_workers.run(1, call_main, arguments)
    assert code == 2
    assert "train/ants/0.png" in errors
    assert "data.bad_images=skip" in errors
    assert "Traceback" not in errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert status["message"] in errors
    assert status["message"].startswith("cannot decode")


def test_a_run_that_was_moved_goes_on_where_it_is_from_any_folder(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    _folder(tmp_path / "start" / "images", GOOD)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), tmp_path / "start" / "w.pth")
    arguments = ["data.root=images", "model.weights=w.pth", "model.name=squeezenet1_1",
                 "data.image_size=32", "data.workers=0", "epochs=2", "run_dir=old",
                 "tracking.trackers=[jsonl]"]  # fmt: skip
    [(code, _, errors)] = gloo_workers.run(1, call_main_in, tmp_path / "start", arguments)
    assert code == 0, errors
    moved = (tmp_path / "start" / "old").rename(tmp_path / "new")
    (moved / "summary.json").unlink()
    shutil.rmtree(sorted((moved / "checkpoints").iterdir())[-1])
    for command in (["--resume", "new"], [f"{moved}/config.yaml", "--resume", "auto"]):
        [(code, out, errors)] = gloo_workers.run(1, call_main_in, tmp_path, command)
        assert code == 0, errors
        assert "going on after step" in out
        assert (moved / "summary.json").is_file()
        assert not (tmp_path / "start" / "old").exists()
    [(code, _, errors)] = gloo_workers.run(
        1, call_main_in, tmp_path, ["--resume", "new", "run_dir=other"]
    )
    assert code == 2
    assert "leave run_dir out" in errors

    # What it needs was moved as well: the error says what to give, and that works.
    for name in ("images", "w.pth"):
        (tmp_path / "start" / name).rename(tmp_path / name)
    (moved / "summary.json").unlink()
    for expected, given in (("data.root=FOLDER", "images"), ("model.weights=FILE", "w.pth")):
        [(code, _, errors)] = gloo_workers.run(1, call_main_in, tmp_path, command)
        assert code == 2
        assert expected in errors
        command = [*command, expected.partition("=")[0] + f"={given}"]
    [(code, out, errors)] = gloo_workers.run(1, call_main_in, tmp_path, command)
    assert code == 0, errors


def test_a_run_that_was_given_no_folder_says_where_it_goes_on(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    arguments = [*SMALL, "tracking.trackers=[jsonl]"]
    stop = [*arguments, "time_limit=1s"]  # which is over when the worker gets this
    [(code, _, errors)] = gloo_workers.run(1, call_main_in, tmp_path, stop)
    assert code == 75
    [folder] = tmp_path.glob("runs/*")
    assert f"to go on: --resume runs/{folder.name}" in errors
    resume = ["--resume", f"runs/{folder.name}", "time_limit=none"]
    [(code, out, errors)] = gloo_workers.run(1, call_main_in, tmp_path, resume)
    assert code == 0, errors
    assert "going on after step" in out


def call_main_in(folder: Path, arguments: list[str]) -> tuple[int, str, str]:
    with contextlib.chdir(folder):
        return call_main(arguments)
