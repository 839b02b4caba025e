"""The processes, devices and precision that a run got, checked against what was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor

from tl.config import Config, Phase, seconds_of
from tl.cores import cores_of_node
from tl.engine import precision
from tl.errors import UserError
from tl.heap import keep_memory

T = TypeVar("T")

TWO_CPU_PROCESSES = (
    "accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml launch/train.py"
)


@dataclass(frozen=True)
class Runtime:
    """What this process is among its peers. Every collective operation of a run is here."""

    accelerator: Accelerator
    precision: str
    """``no`` (float32), ``bf16`` or ``fp16``."""
    threads: int

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def processes_on_node(self) -> int:
        return _processes_on_node(self.world_size)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        if self.world_size == 1:
            return tensor
        reduced = tensor.clone()
        torch.distributed.all_reduce(reduced)
        return reduced

    def start_max(self, tensor: Tensor) -> Callable[[], list[float]]:
        """Start to take the highest of each value over all processes.

        What is returned gives them. It waits for this alone, on a GPU too: not for what the host
        has asked the device to do since.
        """
        work = None
        if self.world_size > 1:
            work = torch.distributed.all_reduce(
                tensor, torch.distributed.ReduceOp.MAX, async_op=True
            )
        if self.device.type == "cuda":
            if work is not None:
                work.wait()  # of the device: the copy comes after it
            host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()

            def arrived() -> list[float]:
                copied.synchronize()
                return host.tolist()
        else:

            def arrived() -> list[float]:
                if work is not None:
                    work.wait()
                return tensor.tolist()

        return arrived

    def from_main(self, value: T) -> T:
        """What the main process has for ``value``, on every process."""
        holder = [value]
        if self.world_size > 1:
            broadcast_object_list(holder)
        return holder[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """Do ``work`` on the main process; all get its result, or its user's error."""
        result, error = _attempt(work) if self.is_main else (None, "")
        result, error = self.from_main((result, error))
        if error:
            raise UserError(error)
        return cast(T, result)

    def from_all(self, values: list[T]) -> list[T]:
        """The lists of all processes, one after another by rank."""
        return gather_object(values) if self.world_size > 1 else values

    def to_main(self, value: T) -> list[T]:
        """The values of all processes by rank on the main one; an empty list on the others."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.world_size if self.is_main else None
        torch.distributed.gather_object(value, gathered)
        return gathered or []

    def wait(self) -> None:
        """Go on when every process is here."""
        self.accelerator.wait_for_everyone()

    def on_all(self, work: Callable[[], T]) -> T:
        """Do ``work``, which may not be collective, on every process.

        A user's error on any process is raised on all of them, so that none is left waiting and
        the main process can say it.
        """
        result, error = _attempt(work)
        if errors := [e for e in self.from_all([error]) if e]:
            raise UserError(errors[0])
        return cast(T, result)

    def first_on_each_node(self, work: Callable[[], T]) -> T:
        """Do ``work`` on one process of each node, then on the others, which find what it left.

        A user's error is raised on all; see `on_all`.
        """
        is_first = self.accelerator.is_local_main_process
        first = self.on_all(lambda: work() if is_first else None)
        other = self.on_all(lambda: None if is_first else work())
        return cast(T, first if is_first else other)

    def check_same(self, what: str, value: str) -> None:
        """Raise UserError unless ``value``, such as a hash, is the same on all processes."""
        if len(set(self.from_all([value]))) > 1:
            raise UserError(
                f"the processes see different {what}: is the folder still being written to, or "
                "another one on each node?"
            )

    def seed(self, seed: int) -> None:
        """Seed torch's generators of this process and its device.

        `torch.manual_seed` does so for every kind of device there could be, and remembers each call
        for those that are not in use: that takes 4 ms.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrite ``tensor`` by the main process's."""
        if self.world_size > 1:
            torch.distributed.broadcast(tensor, src=0)

    def describe(self) -> str:
        """One line on what the run got."""
        device = str(self.device.type)
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        precision = {"no": "float32"}.get(self.precision, self.precision)
        plural = "process" if self.world_size == 1 else "processes"
        nodes = self.world_size // self.processes_on_node
        on_nodes = f" on {nodes} nodes" if nodes > 1 else ""
        backend = f", {torch.distributed.get_backend()}" if self.world_size > 1 else ""
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        return f"{self.world_size} {plural}{on_nodes}{backend} · {device} · {precision} · {threads}"


def _attempt(work: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return work(), ""
    except UserError as error:
        return None, str(error)


def _processes_on_node(world_size: int) -> int:
    # LOCAL_WORLD_SIZE is torchrun's, and so accelerate's for several processes.
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def start(config: Config) -> Runtime:
    """Join the other processes, and check that the run got what was asked for.

    Raises:
        UserError: another number of processes than asked for, or a precision that the device or
            the launcher contradicts.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    half = precision.resolve(config.mixed_precision, launched, precision.of_hardware())
    # `accelerate launch` leaves one thread to each CPU process, whatever cores there are.
    on_node = _processes_on_node(int(os.environ.get("WORLD_SIZE", 1)))
    threads = config.threads or max(1, cores_of_node() // on_node)
    # Otherwise Accelerate warns that it chooses 1.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    accelerator = Accelerator(
        # Accelerate leaves several processes without a GPU each alone, unless told it is a CPU run.
        cpu=not torch.cuda.is_available(),
        mixed_precision=half,
        # The loop accumulates by itself; a setting of the launcher's would divide the loss again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            # Not static_graph: what it saves is the search for unused parameters, which is off, and
            # an objective's graph may change from step to step.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The watchdog is to see a hanging process before this does, which names none.
            InitProcessGroupKwargs(
                timeout=timedelta(seconds=max(1800, 2 * seconds_of(config.hang_timeout)))
            ),
        ],
    )
    kinds = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in kinds:
        raise UserError(
            f"the launcher asks for {accelerator.distributed_type.value}; this trains with DDP. "
            "Leave it out of the launcher's options, or of the file that `accelerate config` wrote."
        )
    world_size = accelerator.num_processes
    check_processes(world_size, config.num_processes, asked_of_launcher())
    if half == "fp16" and accelerator.device.type != "cuda":
        raise UserError("mixed_precision=fp16 needs a GPU; here, use bf16 or no")
    torch.set_num_threads(threads)
    if accelerator.device.type == "cuda":
        precision.use_tf32(config.tf32)
    else:
        keep_memory()
    return Runtime(accelerator, half, threads)


def check_batch(phase: Phase, world_size: int) -> None:
    """Raise UserError if a step would leave a process without an image."""
    micro_batches = phase.gradient_accumulation
    least = world_size * micro_batches * (2 if phase.mixes else 1)
    if phase.global_batch_size < least:
        cut = f" × gradient_accumulation={micro_batches}" if micro_batches > 1 else ""
        pairs, need = (" × 2 images to mix", "two images") if phase.mixes else ("", "one image")
        raise UserError(
            f"global_batch_size={phase.global_batch_size} is smaller than the number of processes, "
            f"{world_size}{cut}{pairs}: give each at least {need}, or start fewer processes"
        )


def check_processes(got: int, configured: int | None, launched: int | None) -> None:
    """Raise UserError if the world size is not the one that was asked for."""
    if configured is not None and configured != got:
        raise UserError(
            f"num_processes={configured} is configured, but {got} joined. Start it with "
            f"`accelerate launch --num_processes {configured}` or "
            f"`torchrun --nproc-per-node {configured}`."
        )
    if launched is not None and launched > 1 and got == 1:
        raise UserError(
            f"accelerate launch was asked for {launched} processes, but started one. On CPUs it "
            f"does so with --cpu; two CPU processes start with\n    {TWO_CPU_PROCESSES}"
        )


def launcher() -> int | None:
    """The process id of the launcher that started this process, if one did."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or _arguments_of_launcher() is not None
    return os.getppid() if launched else None


def asked_of_launcher() -> int | None:
    """The number of processes that `accelerate launch` was asked for, if it is our parent."""
    arguments = _arguments_of_launcher()
    return None if arguments is None else _num_processes(arguments)


def _arguments_of_launcher() -> list[str] | None:
    """What follows `accelerate launch`, if it is our parent."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    at = next((i + 1 for i, word in enumerate(command) if word == "launch"), None)
    if at is None or not any("accelerate" in word for word in command[:at]):
        return None
    return command[at:]


def _num_processes(launch_arguments: list[str]) -> int | None:
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        arguments, _ = launch_command_parser().parse_known_args(launch_arguments)
        if arguments.num_processes is not None:
            return arguments.num_processes
        if arguments.config_file or os.path.isfile(default_config_file):  # noqa: PTH113
            return load_config_from_file(arguments.config_file).num_processes
    except (SystemExit, Exception):  # not ours to judge: the launcher took these arguments
        return None
    return None


def stop() -> None:
    """Leave the other processes. Afterwards `start` can be called again in this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
