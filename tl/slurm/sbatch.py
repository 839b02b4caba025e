"""The text of a batch script, from what a job asks for. A pure function, and nothing of a shell."""

from __future__ import annotations

from importlib.resources import files

from tl.config.values import seconds_of
from tl.slurm.settings import JobSettings

BODY = "body.sh"


def render(job: JobSettings, comment: str, *, array: str | None = None, output: str = "") -> str:
    """The script. Its arguments are those of ``tl train``.

    Args:
        comment: for the head of the script.
        array: the numbers of the tasks, such as ``0-5``.
        output: where the log goes, in Slurm's patterns; a file in the folder of sbatch by default.
    """
    name = "%x-%A_%a" if array else "%x-%j"
    options = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cores,
        "gpus-per-node": job.gpus_per_node or None,
        "mem": job.mem,
        "time": clock(job.time),
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "array": array,
        "output": output or f"{name}.log",
        "open-mode": "append",
        "signal": f"B:USR1@{job.lead}",
        "requeue": "",
    }
    head = "\n".join(f"# {line}".rstrip() for line in comment.splitlines())
    asked = "\n".join(_option(key, value) for key, value in options.items() if value is not None)
    return f"#!/usr/bin/env bash\n{head}\n\n{asked}\n\n{_body(job)}"


def _option(key: str, value: object) -> str:
    return f"#SBATCH --{key}={value}" if value != "" else f"#SBATCH --{key}"


def _body(job: JobSettings) -> str:
    given = {
        "JOB_MODULES": job.modules and f"'{job.modules}'",
        "JOB_VENV": job.venv,
        "JOB_CONDA": job.conda,
        "JOB_CONTAINER": job.container,
        "JOB_PROCESSES": job.processes_per_node,
        "MAX_REQUEUES": f"${{MAX_REQUEUES-{job.max_requeues}}}",
    }
    text = files(__package__).joinpath(BODY).read_text("utf-8")
    for name, value in given.items():
        # What is not given comes from the environment, which sbatch hands on to the job.
        text = text.replace(f"@{name}@", f"${{{name}-}}" if value is None else str(value))
    return text


def clock(duration: str) -> str:
    """A duration as Slurm writes it: ``1-12:00:00``, in whole minutes as it counts them."""
    minutes = -(-int(seconds_of(duration)) // 60)
    days, minutes = divmod(minutes, 24 * 60)
    hours, minutes = divmod(minutes, 60)
    return f"{days}-{hours:02}:{minutes:02}:00" if days else f"{hours:02}:{minutes:02}:00"
