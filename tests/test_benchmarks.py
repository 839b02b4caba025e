"""The tables of benchmarks/ are what was measured, and the harness that measures works."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import models

from tl.arguments import load
from tl.data.transforms import normalise, plain_view
from tl.models import weights, zoo
from tl.models.preprocessing import preprocessing_of, with_image_size
from tl.objectives import check_options

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
RATE = st.floats(1e-3, 1e6)


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """A module of benchmarks/ by its name: they import each other as scripts do."""
    ours = {path.stem for path in BENCHMARKS.rglob("*.py")}
    assert not ours & set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for folder in (BENCHMARKS, BENCHMARKS / "peers"):
            patch.syspath_prepend(str(folder))
        yield importlib.import_module
    for name in ours & set(sys.modules):
        del sys.modules[name]


@pytest.mark.parametrize("script", ["table", "strategy_table", "adaptation_table"])
def test_a_table_is_made_from_the_committed_results(benchmark, script: str) -> None:
    table, of = benchmark("table"), benchmark(script)
    text = of.PAGE.read_text("utf-8")
    made = table.with_table(text, of.render(of.read()), of.BEGIN, of.END)
    assert text == made, f"run `python benchmarks/{script}.py`"


def test_an_evaluation_is_chosen_by_the_rule_and_reported_by_the_targets_labels(benchmark) -> None:
    rules = benchmark("adaptation_table").RULES
    names = ("val/accuracy", "target/im", "target/snd", "oracle/accuracy")
    rows = [(0.9, 0.1, 3.0, 0.1), (0.8, 0.3, 1.0, 0.2), (0.9, 0.3, 2.0, 0.4), (0.7, 0.2, 1.0, 0.3)]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    chosen = {rule: choose(found)["oracle/accuracy"] for rule, choose in rules.items()}
    assert chosen == {
        "last step": 0.3,
        "best source validation": 0.1,  # the first of two as good
        "best IM": 0.2,
        "best SND": 0.1,
        "oracle": 0.4,
    }


def test_every_recipe_of_adaptation_is_a_config(benchmark) -> None:
    recipes = benchmark("adaptation_recipes")
    for keys in recipes.RECIPES.values():
        words = {**recipes.COMMON, **keys, "data.target_root": "x", "data.source_root": "y"}
        loaded = load(None, [f"{key}={value}" for key, value in words.items()], {})
        for i, phase in enumerate(loaded.phases):
            check_options(phase, i, {})


def test_every_recipe_that_is_compared_is_a_config(benchmark) -> None:
    recipes = benchmark("strategy_recipes")
    for recipe in recipes.RECIPES.values():
        for of in recipes.SETS.values():
            keys = {**recipes.COMMON, **of.keys, **recipe.keys}
            loaded = load(None, [f"{key}={value}" for key, value in keys.items()], environ={})
            assert loaded.phases or loaded.later


def test_few_images_of_each_class_are_taken_and_all_others_are_left_to_test_on(
    benchmark, tmp_path: Path
) -> None:
    images = benchmark("images")
    images.make_tiny(tmp_path / "made", train=7, val=1)
    whole = tmp_path / "made" / "train"
    for name in ("first", "again"):
        images.links_to_few(whole, tmp_path / name, train_per_class=3, seed=0)
    cut = {
        name: {
            part: sorted(path.relative_to(tmp_path / name / part) for path in paths)
            for part in ("train", "val")
            if (paths := (tmp_path / name / part).glob("*/*"))
        }
        for name in ("first", "again")
    }
    assert cut["first"] == cut["again"]
    train, val = cut["first"]["train"], cut["first"]["val"]
    assert [path.parent.name for path in train] == ["green"] * 3 + ["red"] * 3
    assert sorted(train + val) == sorted(p.relative_to(whole) for p in whole.glob("*/*"))


def test_the_committed_results_are_of_no_quick_run_and_judged_by_todays_targets(benchmark) -> None:
    results, targets = benchmark("table").read(), benchmark("targets")
    if results is None:
        assert "Not measured yet" in benchmark("table").PAGE.read_text("utf-8")
        return
    assert results["quick"] is False
    ratios: dict = {}
    for part in results["parts"].values():
        ratios |= part.get("ratios", {})
    gpu = results["machine"]["gpu"] is not None
    assert results["targets"] == json.loads(json.dumps(targets.verdicts(ratios, gpu)))


def test_a_table_takes_the_place_of_the_one_before_and_nothing_else_changes(benchmark) -> None:
    table = benchmark("table")
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.with_table(text, "| a |\n| b |", table.BEGIN, table.END)
    assert once == f"before\n{table.BEGIN}\n| a |\n| b |\n{table.END}\nafter\n"
    assert table.with_table(once, "old", table.BEGIN, table.END) == text
    for broken in ("", table.BEGIN, f"{table.END}{table.BEGIN}", text + text):
        with pytest.raises(ValueError, match="not one pair"):
            table.with_table(broken, "new", table.BEGIN, table.END)


@given(rounds=st.lists(st.tuples(RATE, RATE), min_size=1, max_size=9))
def test_a_ratio_is_each_rounds_own(benchmark, rounds) -> None:
    over, under = np.array(rounds).T
    measured = benchmark("measure").ratio(over.tolist(), under.tolist())
    expected = over / under
    assert measured["median"] == pytest.approx(np.median(expected), rel=1e-12)
    assert (measured["min"], measured["max"]) == (expected.min(), expected.max())


def test_contenders_take_turns(benchmark) -> None:
    calls: list[str] = []

    def contender(name: str) -> Callable[[], dict[str, float]]:
        return lambda: calls.append(name) or {"wall_seconds": float(len(calls))}

    rows = benchmark("measure").in_turn({name: contender(name) for name in "ABC"}, rounds=2)
    assert calls == list("ABCABC")
    assert rows["B"]["wall_seconds"] == [2.0, 5.0]


def test_the_median_decides_whether_a_target_is_reached(benchmark) -> None:
    verdicts = benchmark("targets").verdicts
    measured = {
        "head_cold": {"median": 12.0, "min": 11.0, "max": 13.0},
        "head_warm": {"median": 24.9, "min": 24.0, "max": 26.0},
        "start": {"median": 1.3, "min": 1.2, "max": 2.0},
        "overhead_21_1": {"median": 1.11, "min": 1.0, "max": 1.2},
        "head_limit": {"median": 1.0, "min": 1.0, "max": 1.0},
    }
    found = {row["key"]: row for row in verdicts(measured, gpu=False)}
    reached = {key: found[key]["reached"] for key in measured}
    assert reached == {
        "head_cold": True,
        "head_warm": False,
        "start": True,
        "overhead_21_1": False,
        "head_limit": None,
    }
    assert found["head_limit"]["why"] == "not measured: no GPU"
    assert found["finetune_limit"]["why"] == "not measured"
    assert {row["key"]: row for row in verdicts(measured, gpu=True)}["head_limit"]["reached"]


def test_an_accuracy_that_is_two_images_away_is_said(benchmark) -> None:
    def row(*right: int) -> dict[str, list[float]]:
        return {"last_accuracy": [round(n / 153, 4) for n in right]}

    parts = benchmark("parts")
    rows = {parts.COLD: row(138, 138), "A": row(137, 139), "B": row(138, 140), "limit": {}}
    assert parts.disagreements(rows, 153) == ["B: last validation accuracy is 2 images from ours"]


def test_all_read_the_images_that_load(benchmark, tmp_path: Path) -> None:
    images = benchmark("images")
    data, folder = tmp_path / "data", tmp_path / "links"
    images.make_tiny(data, train=3, val=2)
    (data / "train" / "red" / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(data / "train" / "red" / "not_found.gif")
    assert images.links_to_what_loads(data, folder) == {"train": 6, "val": 4, "left_out": 2}
    linked = sorted(path.relative_to(folder) for path in folder.glob("*/*/*"))
    assert linked == sorted(
        path.relative_to(data)
        for path in data.glob("*/*/*")
        if path.name not in ("broken.jpg", "not_found.gif")
    )
    with pytest.raises(FileNotFoundError, match="no folders with images"):
        images.links_to_what_loads(tmp_path / "nowhere", tmp_path / "other")


@pytest.fixture
def told(tmp_path: Path) -> argparse.Namespace:
    """What a peer is told of data of two classes."""
    for name in ("ants", "bees"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
    return argparse.Namespace(data=tmp_path / "data", seed=3, image_size=64, weights=None)


@pytest.mark.parametrize("architecture", ["squeezenet1_0", "resnet18"])
def test_peers_start_from_the_very_network_that_we_start_from(
    benchmark, told, tmp_path: Path, architecture: str
) -> None:
    torch.manual_seed(8)
    path = tmp_path / "weights.pth"
    torch.save(models.get_model(architecture, weights=None).state_dict(), path)
    told.model = architecture
    for file in (path, None):
        told.weights = file
        theirs = benchmark("work").make_model(told)
        torch.manual_seed(told.seed)  # as tl.engine.prepare does
        ours = zoo.build(architecture, 2, 64)
        weights.load(ours, file and str(file))
        ours_state, their_state = ours.model.state_dict(), theirs.state_dict()
        assert ours_state.keys() == their_state.keys()
        assert all(torch.equal(ours_state[name], their_state[name]) for name in ours_state)
        x = torch.randn(2, 3, 64, 64)
        # The same operations, but for how a stage is called.
        torch.testing.assert_close(theirs.eval()(x), ours.eval()(x), rtol=0, atol=1e-6)
        trained = [name for name, _ in benchmark("work").head_of(theirs)]
        assert trained == [
            n for n, _ in ours.model.named_parameters() if ours.stage_of(n) == "head"
        ]


def test_peers_see_the_plain_view_that_we_see(benchmark, told) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    preprocessing = with_image_size(preprocessing_of("squeezenet1_0", None), told.image_size)
    ours = normalise(plain_view(preprocessing)(image)[None], preprocessing)[0]
    theirs = benchmark("work").plain_view(told)(image)
    # 8 bits are rounded once more or less where only what the crop needs is resized.
    step = 1 / 255 / min(preprocessing.std)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1.01 * step)
    assert (theirs - ours).abs().mean() < 0.1 * step


def compare(output: Path, *arguments: str) -> dict:
    """The results of a quick run of the harness."""
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--quick", "--output", str(output)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=output.parent)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "| ratio | wanted | measured |" in done.stdout
    return json.loads(output.read_text())


def every_contender_fine_tunes(part: dict[str, Any]) -> None:
    limit = part["rows"].pop("limit: step on images in memory")
    assert limit["images_per_second"][0] > 0
    assert list(part["rows"]) == [
        "this project",
        "this project, by python",
        "plain PyTorch loop",
        "Accelerate's example",
        "Lightning",
        *(["timm"] if torch.cuda.is_available() else []),
    ]
    for row in part["rows"].values():
        [wall], [first] = row["wall_seconds"], row["seconds_to_first_step"]
        assert 0 < first < wall
        assert row["images_per_second"][0] > 0
        assert 0 <= row["last_accuracy"][0] <= row["best_accuracy"][0] <= 1


# What a quick run of some parts can say.
QUICK = {
    "finetune": {"finetune_peers", "finetune_by_python", "finetune_limit"},
    "head,limits": {
        "head_cold",
        "head_warm",
        *(["head_limit"] if torch.cuda.is_available() else []),
    },
    "overhead,scaling": {"overhead_21_1", "overhead_21_2"},
    "start,memory": {"start"},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parts", QUICK)
def test_every_part_of_the_comparison_can_be_measured(tmp_path: Path, parts: str) -> None:
    results = compare(tmp_path / "results.json", "--only", parts)
    assert list(results["parts"]) == parts.split(",")
    for part in results["parts"].values():
        assert part["rows"]
    assert {row["key"] for row in results["targets"] if row["measured"]} == QUICK[parts]
    if parts == "finetune":
        every_contender_fine_tunes(results["parts"]["finetune"])


def test_those_are_all_parts(benchmark) -> None:
    assert {part for parts in QUICK for part in parts.split(",")} == set(benchmark("parts").PARTS)


def test_a_part_measured_alone_leaves_the_others_where_they_are(tmp_path: Path, benchmark) -> None:
    here = {"gpu": None, "cores": 2, "commit": "b"}
    earlier = {"quick": False, "machine": {**here, "commit": "a"}, "parts": {"head": {"rows": {}}}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(earlier))
    kept = benchmark("compare").kept
    assert kept(path, {"quick": False, "machine": here}) == earlier["parts"]
    assert kept(path, {"quick": True, "machine": here}) == {}
    assert kept(path, {"quick": False, "machine": {**here, "cores": 4}}) == {}
    assert kept(tmp_path / "none.json", {"quick": False, "machine": here}) == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--data FOLDER, or --quick"),
        (["--quick"], "--quick needs an --output of its own"),
        (["--data", ".", "--only", "heads"], "--only heads: there are head, finetune"),
    ],
)
def test_the_harness_says_what_is_missing(
    benchmark, monkeypatch, capsys, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    with pytest.raises(SystemExit) as left:
        benchmark("compare").main()
    assert left.value.code == 2
    assert says in capsys.readouterr().err


def test_made_photographs_weigh_what_photographs_do(benchmark, tmp_path: Path) -> None:
    benchmark("images").make_photos(tmp_path, train=10, val=10, links=1, size=(500, 375))
    for split, files in (("train", 20), ("val", 10)):
        found = sorted((tmp_path / split).glob("*/*.jpg"))
        assert len(found) == files
        assert {path.parent.name for path in found} == {f"class{i}" for i in range(10)}
        for path in found:
            assert 60_000 < path.stat().st_size < 110_000
            with Image.open(path) as image:
                assert image.size == (500, 375)


@pytest.mark.parametrize(
    ("ending", "seconds", "why"),
    [
        ("", 60, None),
        ("raise ValueError('broken')", 60, "ValueError: broken"),
        ("import time; time.sleep(60)", 1, "stopped after 1 s"),
    ],
)
def test_what_a_part_on_the_gpu_has_shown_is_kept_however_it_ends(
    benchmark, tmp_path: Path, monkeypatch, ending: str, seconds: float, why: str | None
) -> None:
    gpu = benchmark("gpu")
    (tmp_path / "workers").mkdir()
    worker = f"""print('RESULT {{"name": "one", "right": true}}', flush=True)\n{ending}\n"""
    (tmp_path / "workers" / "toy.py").write_text(worker)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "SHORTEST", 0.5)
    part = gpu.Part("toy", "what", seconds)
    with (tmp_path / "log").open("w") as log:
        done = gpu.carried_out(part, tmp_path, False, 60, log)
    assert done["results"] == [{"name": "one", "right": True}]
    assert (why is None) == ("error" not in done)
    assert why is None or why in done["error"]
