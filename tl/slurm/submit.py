"""From a command line to a job: its settings, its script, and the command that submits it.

No shell reads any of it: the settings have strict patterns, and the run's arguments go to
``sbatch`` as they are, and from there to the script's ``"$@"``.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tl.arguments import Loaded, load
from tl.command import split_config
from tl.errors import UserError
from tl.mistakes import Origins, explain
from tl.slurm import sweep
from tl.slurm.sbatch import render
from tl.slurm.settings import JobSettings

SCRIPT = "job.sbatch"
"""in the run's folder"""


@dataclass(frozen=True)
class Submission:
    """A job that can be submitted."""

    job: JobSettings
    folder: Path
    """of the run, or of the sweep"""
    words: tuple[str, ...]
    """the arguments of the script: those of `tl train`, and a sweep"""
    swept: tuple[str, ...]
    runs: tuple[Loaded, ...]
    """one, or those of the sweep"""
    script: str

    def command(self) -> list[str]:
        """What submits it."""
        log = "slurm-%A_%a.log" if self.swept else "slurm-%j.log"
        output = f"{str(self.folder.resolve()).replace('%', '%%')}/{log}"
        return [
            "sbatch",
            "--parsable",
            f"--output={output}",
            str(self.folder / SCRIPT),
            *self.words,
        ]


def prepare(words: Sequence[str], swept: Sequence[str]) -> Submission:
    """Check the arguments, and render the script.

    Args:
        words: CONFIG.yaml, keys of the run and keys of the job.
        swept: ``key=value,value`` each, keys of the run.

    Raises:
        UserError: a mistake in any of them; in a sweep, also in one of its runs.
    """
    file, overrides = split_config(words)
    of_job = [word for word in overrides if word.partition("=")[0] in JobSettings.model_fields]
    of_run = [word for word in overrides if word not in of_job]
    if any("\n" in word for word in (*of_run, *swept, file or "")):
        raise UserError("an argument has a line feed in it: write it into a config file")
    job = settings(of_job)
    combinations = sweep.combinations(swept) if swept else [[]]
    runs = tuple(load(file, [*of_run, *chosen]) for chosen in combinations)
    for word in swept:
        if word.partition("=")[0] == "run_dir":
            raise UserError(f"{sweep.SWEEP}: run_dir is that of the whole sweep: give it before")
    name = f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(runs[0].config.run_dir or f"runs/{name}")
    common = [file] if file else []
    common += [word for word in of_run if word.partition("=")[0] != "run_dir"]
    arguments = [*common, f"run_dir={folder}", *([sweep.SWEEP, *swept] if swept else [])]
    array = f"0-{len(runs) - 1}" if swept else None
    script = render(job, f"Made by tl submit; the run is in {str(folder)!a}.", array=array)
    return Submission(job, folder, tuple(arguments), tuple(swept), runs, script)


def settings(words: Sequence[str]) -> JobSettings:
    """The job's settings from ``key=value`` words.

    Raises:
        UserError: a value does not fit its key, with the key and the word.
    """
    values: dict[str, Any] = {}
    origins: Origins = {}
    for word in words:
        key, _, text = word.partition("=")
        whole = "int" in str(JobSettings.model_fields[key].annotation)
        values[key] = int(text) if whole and text.isascii() and text.isdecimal() else text
        if text == "null":
            values[key] = None
        origins[key,] = f"command line: {key}"
    try:
        return JobSettings.model_validate(values)
    except ValidationError as error:
        raise explain(error, JobSettings, origins, ()) from None


def submit(made: Submission) -> str:
    """Write the script into the run's folder, submit it, and return the job's id.

    Raises:
        UserError: there is no Slurm here, or it refuses the job.
    """
    if (made.folder / "config.yaml").exists():
        raise UserError(
            f"run_dir {made.folder} holds another run: give another run_dir, or go on with it by "
            f"{shlex.join(made.command())}"
        )
    made.folder.mkdir(parents=True, exist_ok=True)
    (made.folder / SCRIPT).write_text(made.script, "utf-8")
    try:
        done = subprocess.run(made.command(), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            "there is no sbatch here: submit on a login node; --dry-run shows the script"
        ) from None
    if done.returncode:
        raise UserError(f"Slurm refuses the job: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
