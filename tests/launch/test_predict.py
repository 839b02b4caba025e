"""tl predict: the right numbers, each image once, in order, in a file that anyone can read."""

import csv
import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from launch import evaluate, predict
from tl.data.sampler import BatchShares
from tl.data.transforms import normalise, plain_view
from tl.engine.prediction_rows import Csv, JsonLines, Layout, Prediction
from tl.models import saved

from .conftest import (
    CLASSES,
    ROOT,
    TOLERANCE,
    call_main,
    read_csv,
    run_predict,
    start,
    write_image,
)


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / "images" / f"{i}.png", i) for i in range(5)]


def expected(folder, paths):
    """Probabilities by plain torch, in float64."""
    model = saved.load(folder)
    view = plain_view(model.preprocessing)
    with torch.no_grad():
        batch = torch.stack([view(Image.open(path).convert("RGB")) for path in paths])
        return model.network.double()(normalise(batch, model.preprocessing).double()).softmax(1)


def test_the_numbers_are_those_of_plain_torch(run_folder, images, tmp_path):
    assert run_predict(run_folder, images[0].parent, "--output", tmp_path / "p.csv") == 0
    rows = read_csv(tmp_path / "p.csv")
    assert [row["path"] for row in rows] == [str(path) for path in images]
    probabilities = expected(run_folder, images)
    assert len({row["class"] for row in rows}) > 1
    for row, p in zip(rows, probabilities, strict=True):
        assert row["class"] == CLASSES[p.argmax()]
        assert float(row["confidence"]) == pytest.approx(p.max().item(), abs=TOLERANCE)
        columns = [float(row[f"p({name})"]) for name in CLASSES]
        assert columns == pytest.approx(p.tolist(), abs=TOLERANCE)


def test_json_lines_and_csv_say_the_same(run_folder, images, tmp_path):
    for output in ("p.csv", "p.jsonl"):
        assert run_predict(run_folder, *images, "--output", tmp_path / output) == 0
    for row, line in zip(read_csv(tmp_path / "p.csv"), (tmp_path / "p.jsonl").open(), strict=True):
        value = json.loads(line)
        assert list(value) == ["path", "class", "confidence", "probabilities"]
        assert (value["path"], value["class"]) == (row["path"], row["class"])
        assert value["confidence"] == float(row["confidence"])
        assert value["probabilities"] == {name: float(row[f"p({name})"]) for name in CLASSES}


def test_top_k(run_folder, images, tmp_path):
    for output in ("p.csv", "p.jsonl"):
        assert run_predict(run_folder, *images, "--top-k", 2, "--output", tmp_path / output) == 0
    best = expected(run_folder, images).topk(2)
    rows, lines = read_csv(tmp_path / "p.csv"), (tmp_path / "p.jsonl").read_text().splitlines()
    for row, line, p, i in zip(rows, lines, best.values, best.indices, strict=True):
        assert list(row) == ["path", "class", "confidence", "class1", "p1", "class2", "p2"]
        names = [CLASSES[k] for k in i]
        assert [row["class"], row["class1"], row["class2"]] == [names[0], *names]
        assert [float(row["p1"]), float(row["p2"])] == pytest.approx(p.tolist(), abs=TOLERANCE)
        top = json.loads(line)["top"]
        assert [(t["class"], t["probability"]) for t in top] == [
            (row["class1"], float(row["p1"])),
            (row["class2"], float(row["p2"])),
        ]


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_two_processes_write_the_same_file(run_folder, images, tmp_path, count, monkeypatch):
    # One thread, as each of the two processes has: sums in another order end in other digits.
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    assert run_predict(run_folder, *images[:count], "--batch-size", 2, "--output", one) == 0
    done = start(
        "predict", run_folder, *images[:count], "--batch-size", 2, "--output", two, processes=2
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.decode().count(f"{count} predictions") == 1
    assert two.read_bytes() == one.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "one.csv",
        "two.csv",
    ]


@pytest.mark.parametrize("num_images", [1, 2, 5, 13, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_are_the_same_on_any_number_of_processes(num_images, world_size, batch_size):
    alone = list(BatchShares(num_images, batch_size, 0, 1))
    shares = [BatchShares(num_images, batch_size, r, world_size) for r in range(world_size)]
    assert len({len(list(share)) for share in shares} | {len(share) for share in shares}) == 1
    joined = [batch for share in shares for batch in share if batch != [(0, -1)]]
    assert joined == alone
    assert [i for batch in alone for _, i in batch] == list(range(num_images))


NAMES = [
    "a,b",
    'say "x"',
    "line\nfeed",
    "return\rhere",
    "Käfer 甲虫",
    " spaces ",
    "-dash",
    "\udcff",
]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_any_file_name_comes_back(run_folder, tmp_path, ending):
    paths = {str(write_image(tmp_path / "odd" / f"{name}.png", 0)) for name in NAMES}
    output = tmp_path / f"p.{ending}"
    assert run_predict(run_folder, tmp_path / "odd", "--output", output) == 0
    if ending == "csv":
        assert {row["path"] for row in read_csv(output)} == paths
    else:
        lines = output.read_text("utf-8").split("\n")[:-1]
        assert {json.loads(line)["path"] for line in lines} == paths


def test_class_names_are_quoted_too():
    rows = Csv(["a,b", 'c"'], Layout())
    text = rows.header() + rows.row(Prediction("x", [0.25, 0.75], [1]))
    assert list(csv.reader(io.StringIO(text.decode(), newline=""))) == [
        ["path", "class", "confidence", "p(a,b)", 'p(c")'],
        ["x", 'c"', "0.750000", "0.250000", "0.750000"],
    ]
    line = JsonLines(["a", "b"], Layout()).row(Prediction("x", [1e-7, 1 / 3], [1]))
    assert json.loads(line)["probabilities"] == {"a": 0, "b": 0.333333}


def test_order_and_duplicates(run_folder, images, tmp_path):
    odd = write_image(tmp_path / "no ending", 9)
    (images[0].parent / "notes.txt").write_text("no image")
    folder = images[0].parent
    arguments = [images[3], odd, folder, folder / "." / "3.png", f"{folder}/../images/1.png"]
    assert run_predict(run_folder, *arguments, "--output", tmp_path / "p.csv") == 0
    listed = [row["path"] for row in read_csv(tmp_path / "p.csv")]
    assert listed == [str(path) for path in (images[3], odd, *images[:3], images[4])]


def test_a_bad_image_is_an_error_that_leaves_nothing(run_folder, images, tmp_path, capfd):
    images[2].write_bytes(b"no image")
    (tmp_path / "p.csv").write_text("old")
    assert run_predict(run_folder, images[0].parent, "--output", tmp_path / "p.csv") == 2
    error = capfd.readouterr().err
    assert error.count(str(images[2])) == 1
    assert "--bad-images skip" in error
    assert (tmp_path / "p.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "p.csv"]


def test_bad_images_can_be_left_out(run_folder, images, tmp_path, capfd):
    images[2].write_bytes(b"no image")
    output = tmp_path / "p.csv"
    assert (
        run_predict(run_folder, images[0].parent, "--bad-images", "skip", "--output", output) == 0
    )
    assert [row["path"] for row in read_csv(output)] == [str(images[i]) for i in (0, 1, 3, 4)]
    error = capfd.readouterr().err
    assert error.count(str(images[2])) == 1
    assert "4 predictions" in error
    assert "1 left out" in error
    assert run_predict(run_folder, images[2], "--bad-images", "skip", "--output", output) == 2
    assert len(read_csv(output)) == 4


def test_bad_images_of_two_processes_are_named_once(gloo_workers, run_folder, images):
    images[0].write_bytes(b"no image")
    images[4].write_bytes(b"")
    options = ["--batch-size", 2, "--bad-images", "skip", "--format", "jsonl"]
    words = ["predict", run_folder, images[0].parent, *options]
    (code, out, error), other = gloo_workers.run(2, call_main, *words)
    assert (code, other) == (0, (0, "", "")), error
    assert [json.loads(line)["path"] for line in out.splitlines()] == [
        str(path) for path in images[1:4]
    ]
    assert error.count(str(images[0])) == error.count(str(images[4])) == 1
    assert error.count("2 left out") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["RUN", "missing.png"], "missing.png does not exist"),
        (["RUN", "imagse"], "Did you mean 'images'?"),
        (["RUN", "empty"], "no images in"),
        (["nothing", "images"], "holds no model"),
        (["RUN", "images", "--top-k", "4"], "only 3 classes"),
        (["RUN", "images", "--output", "empty"], "is a folder"),
        (["RUN", "images", "--output", "no/p.csv"], "there is no folder"),
        (["RUN", "images", "--output", "p.txt"], "--format csv or jsonl"),
    ],
)
def test_mistakes(run_folder, images, tmp_path, monkeypatch, capfd, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    assert run_predict(*[run_folder if word == "RUN" else word for word in arguments]) == 2
    captured = capfd.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_usage_errors(capsys):
    for wrong in (["RUN"], ["RUN", "x", "--top-k", "0"], ["RUN", "x", "--format", "xml"]):
        with pytest.raises(SystemExit) as caught:
            run_predict(*wrong)
        assert caught.value.code == 2


@pytest.mark.parametrize("command", [predict, evaluate])
def test_a_command_without_arguments_says_which_it_needs_and_where_help_is(command, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([])
    assert caught.value.code == 2
    usage, error, more = capsys.readouterr().err.rsplit("\n", 3)[:3]
    assert "RUN_DIR | MODEL_DIR" in usage
    assert error == "error: the following arguments are required: RUN_DIR | MODEL_DIR"
    assert more.endswith("--help says more")


def test_an_output_that_is_a_link_stays_one(run_folder, images, tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "p.csv")
    assert run_predict(run_folder, images[0], "--output", tmp_path / "link.csv") == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read_csv(tmp_path / "p.csv")) == 1


def test_a_closed_pipe_is_no_accident(run_folder, images):
    words = [sys.executable, "-m", "launch", "predict", run_folder, images[0].parent]
    child = subprocess.Popen(
        [*map(str, words), "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    child.stdout.close()
    assert child.stderr.read().decode() == ""
    assert child.wait() == 1


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_help_and_mistakes_need_no_torch(command, tmp_path):
    program = f"""
import sys
from launch import {command}
for arguments in (["--help"], ["{tmp_path}/missing", "{tmp_path}/missing too"]):
    try:
        {command}.main(arguments)
    except SystemExit:
        pass
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith(f"usage: tl {command}")
    assert b"does not exist" in done.stderr
