"""What a job's script has to know of its run as it begins, and what it does as it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tl.arguments import load
from tl.atomic import from_json, write_json_atomically, write_text_atomically
from tl.command import split_config
from tl.errors import UserError
from tl.slurm import sweep
from tl.slurm.requeue import decide, newest_step
from tl.tracking.status import read_status
from tl.tracking.tracker import SWEEP

TABLE_FILE = "table.md"
"""in the folder of a sweep"""


def begin(job: str, words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The run's folder, the step of its newest checkpoint, and the arguments to train it with.

    The folder is that of the config and its overrides, if they name one, and else
    ``runs/NAME-JOB``: the same whenever the job starts again. In a sweep it is that of the sweep,
    and each task has a folder in it.

    Raises:
        UserError: a mistake in the arguments, found in a second, before all nodes begin.
    """
    words = list(words)
    if any("\n" in word for word in words):
        raise UserError("an argument has a line feed in it: write it into a config file")
    name = environ.get("SLURM_JOB_NAME", "job")
    task = environ.get("SLURM_ARRAY_TASK_ID")
    if task is None and sweep.SWEEP in words:
        raise UserError(f"{sweep.SWEEP} is for an array: sbatch --array=0-N slurm/array.sbatch …")
    given = words if task is None else sweep.of_task(words, int(task))
    file, overrides = split_config(given)
    loaded = load(file, overrides, environ)
    folder = loaded.config.run_dir
    if task is not None:
        array = environ["SLURM_ARRAY_JOB_ID"]
        sweep_dir = Path(folder or f"runs/{name}-{array}")
        folder = str(sweep.folder_of(sweep_dir, int(task)))
        _note(sweep_dir, words)
    folder = folder or f"runs/{name}-{job}"
    if "\n" in folder:
        raise UserError(f"run_dir {folder!r} has a line feed in it")
    return [folder, str(newest_step(Path(folder))), *given, f"run_dir={folder}"]


def _note(sweep_dir: Path, words: Sequence[str]) -> None:
    """Keep what is swept, for the table that each task brings up to date as it ends."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomically(sweep_dir / SWEEP, {"swept": sweep.split(words)[1]})


def end(
    run_dir: Path,
    began_at: int,
    code: int,
    *,
    max_requeues: int,
    asked: bool,
    ended: bool,
    environ: Mapping[str, str],
) -> int:
    """Say what becomes of the job, and return what its script is to end with; 75: requeue it."""
    verdict = decide(
        read_status(run_dir),
        code=code,
        began_at=began_at,
        step=newest_step(run_dir),
        asked=asked,
        ended=ended,
        requeues=int(environ.get("SLURM_RESTART_COUNT", 0)),
        max_requeues=max_requeues,
    )
    print(verdict.message, flush=True)
    sweep_dir = run_dir.parent
    if "SLURM_ARRAY_TASK_ID" in environ and (sweep_dir / SWEEP).is_file():
        swept = from_json((sweep_dir / SWEEP).read_bytes())["swept"]
        table = sweep.table(swept, sweep_dir)
        write_text_atomically(sweep_dir / TABLE_FILE, f"{table}\n")
        print(f"{sweep_dir / TABLE_FILE}:\n{table}", flush=True)
    return verdict.code
