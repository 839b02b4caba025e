"""The pages: nothing gets out of its place, and what is not there is said."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import Page, assert_harmless, assert_orderly
from PIL import Image
from run_folders import PREPROCESSING, make_run

from tl.data.images import BadImage
from tl.data.split import Source, Split
from tl.data.transforms import augmented_view, seeded
from tl.engine.report_command import report
from tl.errors import UserError
from tl.models.preprocessing import Preprocessing
from tl.report import kept, page
from tl.report.comparison import comparison, differences
from tl.report.pictures import SIDE, Pictures
from tl.report.record import read_run

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></title></svg><b>",
    "caf\udce9 \u202eevil\nline\0",
    "x" * 5000,
    "{{ 7 * 7 }}{% raw %}",
    "' onload='alert(1)",
    "javascript:alert(1)//",
]


def rendered(folder: Path, pictures: Pictures | None = None) -> Page:
    text = page.render("run.html", page.page(read_run(folder), pictures or Pictures()))
    text.encode()  # no lone surrogates
    return Page(text)


def compared(folders: list[Path]) -> Page:
    records = [read_run(folder) for folder in folders]
    values = comparison(records, [Pictures() for _ in records])
    return Page(page.render("comparison.html", values))


def hostile_run(folder: Path, seed: int = 0) -> Path:
    names = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(60)]
    keys = {"data": {"source": HOSTILE[0], HOSTILE[1]: HOSTILE[2] + str(seed)}}
    run = make_run(folder, HOSTILE, names, seed=seed, config=keys)
    facts = kept.read_json(run, kept.RUN)
    facts |= {"network": HOSTILE[0], "data": HOSTILE[1], "device": HOSTILE[2]}
    facts["versions"] = {HOSTILE[0]: HOSTILE[1]}
    for i, phase in enumerate(facts["phases"]):
        phase |= {"name": HOSTILE[i], "train": HOSTILE[i + 1], "objective": HOSTILE[6]}
        for stage in phase["stages"]:
            stage |= {"stage": HOSTILE[2], "lr": HOSTILE[0]}
    kept.write_json(run, kept.RUN, facts)
    status = '{"state": "failed", "step": 3, "message": "<script>alert(2)</script>"}'
    (run / "status.json").write_text(status)
    return run


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    one = hostile_run(tmp_path / "a<b>&'run")
    other = hostile_run(tmp_path / "other", seed=1)
    for found in (rendered(one), compared([one, other])):
        assert_harmless(found)
        assert_orderly(found)
        assert "<script>alert(1)</script>" in found.text
        assert "{{ 7 * 7 }}" in found.text
        assert "x" * 200 not in found.text  # cut
        assert "\\xe9 \\u202eevil\\nline" in found.text
    assert "<script>alert(2)</script>" in rendered(one).text


def test_the_policy_lets_the_page_load_nothing(tmp_path: Path) -> None:
    text = page.render("run.html", page.page(read_run(make_run(tmp_path / "run")), Pictures()))
    (policy,) = [meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta]
    style = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_all_parts_of_a_run_are_there(tmp_path: Path) -> None:
    found = rendered(make_run(tmp_path / "run"))
    assert_harmless(found)
    assert_orderly(found)
    titles = (
        "What was trained|Curves|Confusion|Classes|Calibration|Images worth a look|Time and memory"
    )
    for title in titles.split("|"):
        assert title in found.text
    assert "95 % interval" in found.text
    assert "1 min 2 s" in found.text
    run = tmp_path / "run"
    assert f"-m launch.train {run}/config.yaml run_dir={run}-again" in found.text
    assert "What is not there" not in found.text


def test_what_the_labels_of_a_target_say_stands_apart(tmp_path: Path) -> None:
    found = rendered(make_run(tmp_path / "run", adapts=True))
    assert_harmless(found)
    assert_orderly(found)
    target, oracle = found.text.split("The target, without its labels")[1].split("Oracle", 1)
    assert "neighbours that agree" in target
    assert "Parts of the objective" in target
    assert "by its labels" not in target
    shown = "At the evaluation that was chosen as the best 80.0 % of the target's images are right"
    assert shown in oracle
    assert "Accuracy on the target, by its labels" in oracle
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines.replace("train/transfer", "val/other"))
    assert "The term classification." in rendered(tmp_path / "run").text
    without = rendered(make_run(tmp_path / "other"))
    assert "Oracle" not in without.text
    assert "The target" not in without.text


def test_a_run_without_what_reports_are_made_of_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for file in (run / "report").iterdir():
        file.unlink()
    found = rendered(run)
    assert_orderly(found)
    assert "report/run.json" in found.text
    assert "Curves" in found.text
    assert "Calibration" not in found.text
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    (run / "status.json").unlink()
    found = rendered(run)
    assert "metrics.jsonl" in found.text
    assert "No evaluation yet." in found.text
    with pytest.raises(UserError, match=r"no folder of a run: it has no config\.yaml"):
        read_run(tmp_path)


def test_a_killed_run_shows_how_far_it_came(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state="preempted")
    found = rendered(run)
    assert "--resume auto" in found.text
    assert "best, at step 20" in found.text
    facts = kept.read_json(run, kept.RUN) | {"classes": "not a list"}
    kept.write_json(run, kept.RUN, facts)
    assert "report/run.json" in rendered(run).text  # as if there was none


def test_a_thousand_classes_fit_into_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [f"class {i}" for i in range(1000)], images=3000)
    text = page.render("run.html", page.page(read_run(run), Pictures()))
    found = Page(text)
    assert_orderly(found)
    assert "confused most often" in found.text
    assert "The other 988 classes" in found.text
    assert len(text) < 1_000_000
    assert found.text.index("class 1") > 0


def test_pictures_are_what_the_run_saw_and_a_missing_one_has_its_name(tmp_path: Path) -> None:
    preprocessing = Preprocessing.from_dict(PREPROCESSING)
    run = make_run(tmp_path / "run")

    def read(i: int) -> Image.Image:
        if i == 5:
            raise BadImage("val/5.png", "gone")
        return Image.linear_gradient("L").resize((40, 40)).convert("RGB").rotate(9 * i)

    names = [f"val/{i}.png" for i in range(60)]
    labels = torch.zeros(60, dtype=torch.int64).numpy()
    split = Split(names, labels, read)
    pictures = Pictures(Source("toys", ("ant", "bee"), split, split), preprocessing)
    found = rendered(run, pictures)
    uris = [image["src"] or "" for image in found.all("img")]
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in uris)
    assert pictures.validation(5, "val/5.png") is None
    assert pictures.validation(6, "another name") is None
    assert pictures.validation(60, "val/60.png") is None

    phase: dict[str, Any] = read_run(run).phases[0]
    image = pictures.augmented(phase, seed=0)[0]
    view = augmented_view(preprocessing, "flip", (0.08, 1.0))
    seen = seeded(view, read(0), 0, 0, 0)  # seed, epoch, image: as tl.data.streams has it
    expected = Image.fromarray(seen.permute(1, 2, 0).numpy()).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    from tl.report.pictures import data_uri

    assert image["views"][1] == data_uri(expected)
    pictures.reads = False
    assert pictures.augmented(phase, seed=0)  # it is there
    assert pictures.validation(7, "val/7.png") == pictures.validation(7, "val/7.png")


def test_runs_are_compared_by_what_differs_and_by_chance(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", config={"optimizer": {"lr": 0.1}, "tracking": {"log_every": 1}})
    b = make_run(tmp_path / "b", seed=1, config={"optimizer": {"lr": 0.2}})
    found = compared([a, b])
    assert_harmless(found)
    assert_orderly(found)
    assert "optimizer.lr" in found.text
    assert "tracking.log_every" not in found.text
    assert "within noise" in found.text
    assert "Images on which they disagree" in found.text
    assert differences([{"x": [1, {"y": 2}]}, {"x": [1, {"y": 3}]}]) == [("x.1.y", ["2", "3"])]
    path = report([a, b, tmp_path / "b" / ".." / "b"], tmp_path / "page.html")
    assert "2 runs side by side" in path.read_text()


def test_a_page_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="--output"):
        report([run], tmp_path / "nowhere" / "page.html")
    assert report([run]) == run / "report.html"
