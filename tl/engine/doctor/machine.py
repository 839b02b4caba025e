"""The software, GPUs, cores and memory that this process and its node have."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil
import torch

from tl.config import Config
from tl.data.streams import default_workers
from tl.engine import precision
from tl.engine.doctor import cgroups
from tl.engine.doctor.findings import GIB, Finding, gib, note, ok, problem
from tl.engine.runtime import Runtime

_PACKAGES = ("torch", "torchvision", "accelerate", "wandb", "timm", "transfer-launcher")


def versions() -> dict[str, str]:
    """Of Python, of what the project stands on, and of the project."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_versions(found: Mapping[str, str]) -> Finding:
    """A line of them."""
    return ok("versions", ", ".join(f"{name} {version}" for name, version in found.items()))


def gpu_names() -> list[str]:
    """Of the GPUs that this process sees."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def gpus(here: Runtime) -> list[Finding]:
    """The GPUs of this node and their driver. For one process of each node."""
    driver = _driver()
    names = gpu_names()
    if not names:
        if driver is None:
            return [ok("GPUs", "none: runs compute on CPUs")]
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}" if built else "torch is built for CPUs"
        return [
            problem(
                "GPUs",
                f"there is a driver ({driver}), and torch finds no GPU ({why})",
                "ask for a GPU (Slurm: --gpus-per-node=1; a container: --nv, --gpus all), look at "
                "CUDA_VISIBLE_DEVICES, or install a torch whose CUDA the driver can run",
            )
        ]
    found = []
    memory = [torch.cuda.mem_get_info(i) for i in range(len(names))]
    for name in dict.fromkeys(names):
        sizes = {gib(total) for each, (_, total) in zip(names, memory, strict=True) if each == name}
        text = f"{names.count(name)} × {name}, {' or '.join(sorted(sizes))}"
        found.append(ok("GPUs", f"{text}, driver {driver}, CUDA {torch.version.cuda}"))
    for i, (free, total) in enumerate(memory):
        if free < 0.8 * total:
            found.append(
                note(
                    "GPUs",
                    f"GPU {i} has {gib(free)} of {gib(total)} free: another process uses it",
                    "`nvidia-smi` shows whose it is",
                )
            )
    if len(names) > here.processes_on_node:
        found.append(
            note(
                "GPUs",
                f"{len(names)} here, and {here.processes_on_node} in use",
                f"accelerate launch --num_processes {len(names)} uses all",
            )
        )
    return found


def _driver() -> str | None:
    """The version of NVIDIA's driver; None: there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text("utf-8", errors="replace")
        if found := re.search(r"Module\D*?\s(\d+\.[\d.]+)", text):
            return found[1]
    except OSError:
        pass
    if (command := shutil.which("nvidia-smi")) is None:
        return None
    words = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def computes(here: Runtime, config: Config) -> Finding:
    """Whether this process's device computes right, and in which precision."""
    device = here.device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(here.precision, torch.float32)
    try:
        # A torch that has no kernels for a GPU says so at the first of them.
        made = torch.full((64, 64), 2, dtype=dtype, device=device) @ torch.full(
            (64, 64), 3, dtype=dtype, device=device
        )
        right = bool((made == 384).all())
    except RuntimeError as error:
        first = (str(error).splitlines() or [""])[0]
        mend = "install a torch that supports this device; see https://pytorch.org/get-started"
        return problem("precision", f"{device} cannot compute: {first}", mend)
    if not right:
        mend = "leave this device out, and have it looked at"
        return problem("precision", f"{device} computes a product of matrices wrong", mend)
    hardware = precision.of_hardware()
    name = {"no": "float32"}.get(here.precision, here.precision)
    if here.precision == hardware:
        why = "no half precision in hardware" if hardware == "no" else "in hardware"
        return ok("precision", f"{name}, {why}")
    if here.precision == "no":
        return ok("precision", f"float32, as configured; {hardware} is in hardware")
    if here.precision == "fp16" and hardware == "bf16":
        return ok("precision", "fp16, as configured; bf16 is in hardware, and needs no scaling")
    return note(
        "precision",
        f"{name} is not in this hardware, and emulated: slow",
        f"mixed_precision={hardware}, or auto",
    )


def workers_of(here: Runtime, config: Config) -> int:
    """Loader workers of each process."""
    given = config.data.workers
    return default_workers(here.processes_on_node) if given is None else given


def cores(here: Runtime, config: Config, environ: Mapping[str, str]) -> list[Finding]:
    """The cores that this process may use, and what a run would start on them."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    processes = here.processes_on_node
    each = workers_of(here, config)
    text = (
        f"{count} of {os.cpu_count()} granted, {processes} process"
        f"{'es' if processes > 1 else ''} with {each} loader worker{'' if each == 1 else 's'} each"
    )
    if granted := environ.get("SLURM_CPUS_PER_TASK") or environ.get("SLURM_CPUS_ON_NODE"):
        text += f"; Slurm granted {granted}"
    found = [ok("cores", text)]
    if processes * (each + 1) > 2 * count + 1:
        found.append(
            note(
                "cores",
                f"{processes * (each + 1)} processes and workers share {count}",
                "ask for more (Slurm: --cpus-per-task), or give data.workers a smaller number",
            )
        )
    if (limit := cgroups.cpu_limit()) is not None and limit < count:
        found.append(
            note(
                "cores",
                f"{count} can be seen, and the time of {limit:.3g} may be used (a cgroup's quota)",
                f"threads={max(1, int(limit) // processes)} and data.workers keep a run from "
                "being held up",
            )
        )
    return found


def memory(
    here: Runtime, batch_bytes: int, config: Config, shm: Path = Path("/dev/shm")
) -> list[Finding]:
    """Main memory, and the part of it that loader workers hand batches over in.

    Args:
        batch_bytes: those of a process's batch.
    """
    workers = workers_of(here, config)
    machine = psutil.virtual_memory()
    limit = cgroups.memory_limit()
    text = f"{gib(machine.available)} of {gib(machine.total)} available"
    if limit is not None and limit < machine.total:
        text += f"; {gib(limit)} may be used (a cgroup's limit)"
    available = min(machine.available, limit or machine.available)
    if available < 2 * GIB * here.processes_on_node:
        found = [
            note(
                "memory",
                f"{text}: little for {here.processes_on_node} process(es), which take 1 to 2 GiB",
                "ask for more (Slurm: --mem), or give data.workers a smaller number",
            )
        ]
    else:
        found = [ok("memory", text)]
    try:
        free = shutil.disk_usage(shm).free
    except OSError as error:
        mend = "data.workers=0 works without it"
        return [*found, problem(str(shm), f"there is none ({error.strerror})", mend)]
    # Each worker has two batches under way, and there is the one that is trained on.
    need = here.processes_on_node * batch_bytes * (2 * workers + 1)
    mend = "give it more (Docker: --shm-size=8g), or fewer data.workers; 0 need none of it"
    if workers and free < need:
        text = (
            f"{gib(free)} free, and batches of {workers} loader workers each may take {gib(need)}"
        )
        return [*found, problem(str(shm), text, mend)]
    return [*found, ok(str(shm), f"{gib(free)} free; batches on their way may take {gib(need)}")]
