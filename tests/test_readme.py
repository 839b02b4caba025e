"""The README's commands are those that work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tl.arguments import load
from tl.mistakes import leaves
from tl.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
# Those of a run; configs/accelerate holds the launcher's.
CONFIGS = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/domain_adaptation").glob("*.yaml")]


def test_the_first_block_installs_and_runs_the_quickstart() -> None:
    venv, install, quickstart = BLOCKS[0].splitlines()
    assert venv == "python3 -m venv .venv && source .venv/bin/activate"
    assert install == "pip install -e '.[test]'"
    assert quickstart == "accelerate launch launch/train.py"


def test_ci_runs_the_readmes_test_command() -> None:
    [command] = BLOCKS[1].splitlines()
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert command in lines
    assert "python3 -m venv .venv" in lines


@pytest.mark.slow
def test_the_quickstart_shows_what_transfer_buys(tmp_path: Path) -> None:
    """Word for word, with a folder to write to. Two minutes are what it may take on two cores."""
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    command = [accelerate, *BLOCKS[0].splitlines()[2].split()[1:], f"run_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
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
    assert re.search(r"Expect.*(0\.\d\d|README\.md)", header.replace("\n#", ""))
    load(config, [], environ={})


YAML = re.findall(r"^```yaml\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(YAML)))
def test_the_readmes_yaml_loads(tmp_path: Path, number: int) -> None:
    (tmp_path / "c.yaml").write_text(YAML[number])
    load(tmp_path / "c.yaml", environ={})


def test_the_readmes_phases_load(tmp_path: Path) -> None:
    [block] = [block for block in YAML if block.startswith("phases:")]
    (tmp_path / "c.yaml").write_text(block)
    loaded = load(tmp_path / "c.yaml", ["phases.1.epochs=20"], environ={"TL_OPTIMIZER__LR": "0.1"})
    assert [phase.name for phase in loaded.phases] == ["probe", "tune"]
    assert loaded.phases[1].epochs == 20
    assert loaded.phases[1].optimizer.lr == 0.001


@pytest.mark.parametrize(
    "name", re.findall(r"`(configs/[\w./]+|benchmarks/[\w./]+)`|\]\(([\w./]+)\)", README)
)
def test_what_the_readme_points_to_is_there(name: tuple[str, str]) -> None:
    assert (ROOT / (name[0] or name[1])).exists()


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
