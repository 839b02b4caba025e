"""The scripts in slurm/: what `render` makes of a few common jobs.

    python -m tl.slurm.templates

writes them anew; a test says if that was forgotten.
"""

from __future__ import annotations

from pathlib import Path

from tl.slurm.sbatch import render
from tl.slurm.settings import JobSettings

FOLDER = Path(__file__).parents[2] / "slurm"

COMMON = """\
CONFIG.yaml and key=value are those of `tl train`. Options of sbatch go before the script and are
stronger than the #SBATCH lines: sbatch --partition=long --time=2-00:00:00 {file} …
The run's folder is runs/NAME-JOB, but for run_dir=FOLDER. A job that Slurm stops for its time or
for another job queues again and goes on; docs/slurm.md says how.
Made by `python -m tl.slurm.templates` from tl/slurm/: change it there, or a copy of this file."""

TEMPLATES: dict[str, tuple[str, str, JobSettings, str | None]] = {
    "debug": (
        "One GPU for some minutes: does it start, are the data found, does the loss fall?",
        "sbatch slurm/debug.sbatch CONFIG.yaml steps=20",
        JobSettings(name="debug", time="15m", lead=60, max_requeues=0),
        None,
    ),
    "single_node": (
        "All GPUs of one node, 8 here: sbatch --gpus-per-node=4 for another number.",
        "sbatch slurm/single_node.sbatch CONFIG.yaml optimizer.lr=0.01",
        JobSettings(gpus_per_node=8),
        None,
    ),
    "multi_node": (
        "Several nodes with 8 GPUs each: sbatch --nodes=4 --gpus-per-node=4 for other numbers.",
        "sbatch slurm/multi_node.sbatch CONFIG.yaml global_batch_size=1024",
        JobSettings(nodes=2, gpus_per_node=8),
        None,
    ),
    "array": (
        "A sweep, with a GPU for each run: every combination of the values after --sweep. As many\n"
        "tasks as runs, four here, at most eight at once: sbatch --array=0-5%8 for six runs.",
        "sbatch slurm/array.sbatch CONFIG.yaml --sweep optimizer.lr=1e-3,1e-2 seed=0,1",
        JobSettings(name="sweep"),
        "0-3%8",
    ),
    "cpu": (
        "Nodes without GPUs: one process for all cores of a node, or some that divide them.",
        "JOB_PROCESSES=2 sbatch --nodes=2 slurm/cpu.sbatch CONFIG.yaml",
        JobSettings(name="transfer-cpu", gpus_per_node=0, cpus_per_node=16),
        None,
    ),
}


def text(name: str) -> str:
    """The content of ``slurm/NAME.sbatch``."""
    what, command, job, array = TEMPLATES[name]
    comment = f"{what}\n\n    {command}\n\n{COMMON.format(file=f'slurm/{name}.sbatch')}"
    return render(job, comment, array=array)


def main() -> None:
    """Write them all."""
    for name in TEMPLATES:
        (FOLDER / f"{name}.sbatch").write_text(text(name), "utf-8")


if __name__ == "__main__":
    main()
