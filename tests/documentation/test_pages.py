"""What the documentation points to is there, what it shows loads; of commands see test_blocks."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from blocks import PAGES, ROOT, TRANSLATION, blocks_of, name_of
from shell import Shell

from launch.__main__ import COMMANDS, FILES
from tl.arguments import load
from tl.config_help import markdown_page
from tl.mistakes import leaves
from tl.objectives import OBJECTIVES

ALL = [*PAGES, TRANSLATION]
# Those of a run; configs/accelerate holds the launcher's.
CONFIGS = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/domain_adaptation").glob("*.yaml")]


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """What headings are called in a link, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), target
            assert not anchor or anchor in anchors_of(there), target


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    pages = [name_of(page) for page in (ROOT / "docs").glob("*.md")]
    assert not [page for page in pages if f"]({page})" not in text]


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_a_file_that_is_named_is_there(page: Path) -> None:
    named = r"`((?:configs|benchmarks|docs|launch|slurm|tests|tl)/[\w./]+)`"
    for name in re.findall(named, prose_of(page)):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_a_command_within_a_sentence_is_one_with_options_that_it_has(page: Path) -> None:
    for words in re.findall(r"`tl ([a-z][^`]*)`", prose_of(page)):
        name, *rest = words.split()
        assert name in COMMANDS, words
        module = importlib.import_module(f"launch.{FILES.get(name, name.replace('-', '_'))}")
        if options := [word.partition("=")[0] for word in rest if word.startswith("--")]:
            known = module.parser().format_help()
            assert all(option in known for option in options), words


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_yaml_that_is_shown_loads(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(b for b in blocks_of(page) if b.language == "yaml"):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.text)
        load(file, environ={})


def test_the_readmes_phases_are_two_and_take_overrides(tmp_path: Path) -> None:
    [block] = [b for b in blocks_of(ROOT / "README.md") if b.text.startswith("phases:")]
    (tmp_path / "c.yaml").write_text(block.text)
    loaded = load(tmp_path / "c.yaml", ["phases.1.epochs=20"], environ={"TL_OPTIMIZER__LR": "0.1"})
    assert [phase.name for phase in loaded.phases] == ["probe", "tune"]
    assert loaded.phases[1].epochs == 20
    assert loaded.phases[1].optimizer.lr == 0.001


def test_numbers_of_the_readmes_results_are_on_the_page_that_it_links() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    results = text.partition("\n## Measured\n")[2].partition("\n## ")[0].split("\n- ")[1:]
    checked = 0
    for result in results:
        for sentence in re.split(r"(?<=\))\.\s", result.partition("\n\n")[0]):
            [page, *_] = re.findall(r"\((benchmarks/[\w.]+)\)", sentence)
            there = (ROOT / page).read_text("utf-8")
            for number in re.findall(r"\d+\.\d+|\b\d{3,}\b", sentence):
                assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", there), number
                checked += 1
    assert checked > 5


def test_all_keys_are_on_their_page() -> None:
    page = (ROOT / "docs" / "keys.md").read_text("utf-8")
    assert page == markdown_page() + "\n", "run `python -m tl.config_help > docs/keys.md`"


@pytest.mark.slow
def test_the_quickstart_shows_what_transfer_buys(open_shell: Callable[[], Shell]) -> None:
    """The README's block, word for word. Two minutes are what it may take on two cores."""
    [block] = [b for b in blocks_of(ROOT / "README.md") if "run_dir=runs/quickstart" in b.text]
    folder = open_shell().folder
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TL_")}
    environ |= {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", block.text], capture_output=True, text=True, cwd=folder, env=environ
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs" / "quickstart" / "summary.json").read_text())
    scratch, head, tuned = (
        summary[way]["val/accuracy"] for way in ("from scratch", "head only", "fine-tuned")
    )
    assert scratch < head
    assert scratch < tuned
    assert (
        summary["head only"]["trainable_parameters"]
        < summary["fine-tuned"]["trainable_parameters"]
        == summary["from scratch"]["trainable_parameters"]
    )
    assert summary["head only"]["frozen_unchanged"] is True
    assert summary["fine-tuned"]["frozen_unchanged"] is None  # nothing was
    for word in ("from scratch", "head only", "fine-tuned", "accuracy", "trained parameters"):
        assert word in done.stdout


@pytest.mark.parametrize("config", sorted(CONFIGS), ids=lambda path: path.stem)
def test_every_config_begins_with_its_command_and_result_and_loads(config: Path) -> None:
    text = config.read_text("utf-8")
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    assert f"accelerate launch launch/train.py {config.relative_to(ROOT)}" in header
    [result] = re.findall(r"Expect.*?(0\.\d\d|benchmarks/\w+\.md)", header.replace("\n#", ""))
    assert result.startswith("0.") or (ROOT / result).exists()
    load(config, [], environ={})


def test_the_table_of_objectives_has_every_option_with_its_default() -> None:
    table = (ROOT / "docs" / "objectives.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.MULTILINE))
    assert rows.keys() == OBJECTIVES.keys()
    for name, objective in OBJECTIVES.items():
        options = rows[name].split(" | ")[-2]
        defaults = {str(path[0]): field.default for path, field in leaves(objective.Options)}
        told = dict(re.findall(r"`(\w+)` (\S+?)(?:,|$)", options.strip()))
        in_yaml = {n: d if isinstance(d, str) else json.dumps(d) for n, d in defaults.items()}
        assert told == in_yaml, name
        for _, field in leaves(objective.Options):
            assert field.description
