"""How many cores there are for all processes of a job on this node."""

from __future__ import annotations

import os
from collections.abc import Mapping

SLURMS = "SLURM_CPUS_ON_NODE"


def cores_of_node(environ: Mapping[str, str] = os.environ) -> int:
    """Those that this process may run on, and no more than Slurm has granted to the job.

    Where Slurm does not bind jobs to cores, a process may run on those of other jobs as well.
    """
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    granted = environ.get(SLURMS, "")
    return min(cores, int(granted)) if granted.isdecimal() and int(granted) else cores
