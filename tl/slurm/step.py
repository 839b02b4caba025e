"""Processes that `srun` itself started, one a task, in the terms in which launchers say it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from tl.errors import UserError


def as_launched(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a launcher for a task of a step of several; empty for all else.

    A batch script and a shell have no step of their own, and where there is a launcher it has
    said all this itself.

    Raises:
        UserError: Slurm does not say on which node the first task is.
    """
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks < 2 or "RANK" in environ or "SLURM_PROCID" not in environ:
        return {}
    nodes = int(environ.get("SLURM_STEP_NUM_NODES", 1))
    if tasks % nodes:
        raise UserError(
            f"srun has {tasks} tasks on {nodes} nodes: give each node as many, by --ntasks-per-node"
        )
    job, step = int(environ["SLURM_JOB_ID"]), int(environ["SLURM_STEP_ID"])
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "MASTER_ADDR": _first_host(environ["SLURM_STEP_NODELIST"]),
        # Below the ports that the system gives away by itself, another one for each step.
        "MASTER_PORT": str(20000 + (job * 31 + step) % 10000),
    }


def _first_host(nodes: str) -> str:
    """Of a list such as ``n[1-4,7]``, which Slurm can spell out."""
    if not any(c in nodes for c in "[,"):
        return nodes
    words = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"scontrol does not say which nodes {nodes} are: {error}") from error
    return done.stdout.split()[0]
