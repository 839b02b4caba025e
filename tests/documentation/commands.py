"""How a command of the documentation is run in a test: the rules, one for each command.

    python commands.py SOCKET

serves them: each is carried out in a fork of this process, which has torch imported (a fresh one
takes seconds to start), in the folder, the environment and with the files of who calls
`stand_in.py`.
What is not in `RULES` is "command not found" to the shell of `shell.py`, and the test fails.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_PROCESSES = 2
SECONDS = 280

Words = Sequence[str]


class NotRight(Exception):
    """What a rule has found."""


def tl(words: Words) -> int:
    """The command itself. A job is not queued, and the rest is made small."""
    if words and words[0] == "submit":
        words = [*(word for word in words if word != "--dry-run"), "--dry-run"]
    if words and words[0] == "train":
        words = ["train", *small(words[1:])]
    return script(ROOT / "launch" / "__main__.py", words)


def python(words: Words) -> int:
    """A script of this repository, or what comes by standard input; and what stands below."""
    match list(words):
        case ["-m", "venv", folder]:
            activate = Path(folder, "bin", "activate")
            activate.parent.mkdir(parents=True)
            activate.touch()
            return 0
        case ["-m", "pytest", *_]:
            return in_ci(["python", *words])
        case [file, *arguments] if file.startswith("benchmarks/"):
            return benchmark(Path(file), arguments)
        case ["-"]:
            exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
            return 0
        case ["-m", module, *arguments]:
            return launched(module, arguments, is_module=True, processes=1)
        case [file, *arguments] if file.endswith(".py"):
            return launched(file, arguments, is_module=False, processes=1)
    raise NotRight("no rule for this python")


def accelerate(words: Words) -> int:
    """Options are read by the launcher's own parser."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    if not words or words[0] != "launch":
        raise NotRight("no rule for accelerate without launch")
    asked = launch_command_parser().parse_args(words[1:])
    processes = asked.num_processes
    if processes is None and asked.config_file:
        processes = load_config_from_file(asked.config_file).num_processes
    return launched(asked.training_script, asked.training_script_args, asked.module, processes or 1)


def torchrun(words: Words) -> int:
    from torch.distributed.run import get_args_parser

    asked = get_args_parser().parse_args(words)
    processes = int(asked.nproc_per_node) * int(asked.nnodes.split(":")[-1])
    return launched(asked.training_script, asked.training_script_args, asked.module, processes)


def pip(words: Words) -> int:
    """Nothing is installed; this project has the extras that are named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    match list(words):
        case ["install", "-e", what] if found := re.fullmatch(r"\.(?:\[([\w,-]+)\])?", what):
            extras = set(found[1].split(",")) if found[1] else set()
            if unknown := extras - project["optional-dependencies"].keys():
                raise NotRight(f"no extra {unknown} in pyproject.toml")
            return 0
    raise NotRight("no rule for this pip")


def in_ci(words: Words) -> int:
    """Not run again here: .ci/run does, and has to have the very line."""
    if " ".join(words) not in (ROOT / ".ci" / "run").read_text("utf-8").splitlines():
        raise NotRight("not a line of .ci/run")
    return 0


def sbatch(words: Words) -> int:
    """Not queued: the script is there and is bash, and the run's config loads."""
    at = next(i for i, word in enumerate(words) if not word.startswith("-"))
    subprocess.run(["bash", "-n", words[at]], check=True)
    arguments = [word for word in words[at + 1 :] if word != "--sweep"]
    first = [word.split(",")[0] if "," in word else word for word in arguments]
    with contextlib.redirect_stdout(io.StringIO()):
        return script(ROOT / "launch" / "train.py", [*first, "--print-config"])


def srun(words: Words) -> int:
    """What a task would do, here."""
    at = next(i for i, word in enumerate(words) if not word.startswith("-"))
    return carry_out(words[at:])


def nvidia_smi(words: Words) -> int:
    """As where there are two GPUs, to who counts them, and none to who asks for more."""
    if list(words) != ["--list-gpus"]:
        return 9  # "NVIDIA driver is not loaded"
    print("GPU 0\nGPU 1")
    return 0


RULES: dict[str, Callable[[Words], int]] = {
    "accelerate": accelerate,
    "mypy": lambda words: in_ci(["mypy", *words]),
    "nvidia-smi": nvidia_smi,
    "pip": pip,
    "python": python,
    "python3": python,
    "ruff": lambda words: in_ci(["ruff", *words]),
    "sbatch": sbatch,
    "srun": srun,
    "tl": tl,
    "torchrun": torchrun,
}


def benchmark(file: Path, arguments: Words) -> int:
    """Hours, and data that a clone lacks: what takes arguments is not run. Its help has them."""
    sys.path.insert(0, str(file.parent.absolute()))
    if not arguments:
        return script(file, [])
    text = file.read_text("utf-8")
    if "ArgumentParser" in text:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = script(file, ["--help"])
        known = [word in said.getvalue() for word in arguments if word.startswith("--")]
    else:  # its first lines are the help
        code, known = 0, [f"    python {file} {' '.join(arguments)}" in text]
    if not all(known):
        raise NotRight(f"{file} does not say that it takes {arguments}")
    return code


def launched(what: str, arguments: Words, is_module: bool, processes: int) -> int:
    """A script, or a module, in some processes that know of each other by the environment."""
    if what in ("launch/train.py", "launch.train"):
        arguments = small(arguments)
    if (processes := min(processes, MOST_PROCESSES)) == 1:
        return script(what, arguments, is_module)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(processes):
        if (process := os.fork()) == 0:
            signal.alarm(SECONDS)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            end(lambda: script(what, arguments, is_module))
        ranks.append(process)
    return max(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) != 0 for rank in ranks)


def script(what: str | Path, arguments: Words, is_module: bool = False) -> int:
    """Run it as Python would; returns the exit code."""
    sys.argv = [str(what), *arguments]
    try:
        if is_module:
            runpy.run_module(str(what), run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(what), run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def small(arguments: Words) -> Words:
    """Arguments of training, for a run of little more than its beginning and its end.

    Most of that is in the environment already; this adds what depends on the config. The quickstart
    would be none with that, and takes minutes: a test of its own runs it.
    """
    from launch.train import parser
    from tl import arguments as config_arguments
    from tl.command import split_config
    from tl.engine import quickstart, run_dir

    asked = parser().parse_intermixed_args(arguments)
    file, overrides = split_config(asked.arguments)
    file, folder = run_dir.of_command(file, asked.resume)
    loaded = config_arguments.load(file, overrides, {}, folder)
    if quickstart.is_asked_for(file, loaded):
        for name in [name for name in os.environ if name.startswith("TL_")]:
            del os.environ[name]
        return [*arguments, "--dry-run"]
    for number in range(len(loaded.config.phases or ())):
        os.environ[f"TL_PHASES__{number}__STEPS"] = "1"
    return arguments


def carry_out(words: Words) -> int:
    if words[0] not in RULES:
        raise NotRight("no rule for this command")
    return RULES[words[0]](words[1:])


def end(command: Callable[[], int]) -> None:
    """Run it and end this process with its exit code."""
    code = 1
    try:
        code = command()
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def serve(path: str) -> None:
    """Carry out what comes, each in a process of its own, until who has started this is gone."""
    import accelerate  # noqa: F401
    import torchvision  # noqa: F401

    import tl.engine.run  # noqa: F401

    started_by = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while os.getppid() == started_by:
            try:
                caller = listener.accept()[0]
            except TimeoutError:
                continue
            if os.fork() == 0:
                answer(caller)
            caller.close()


def answer(caller: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    caller.setblocking(True)
    _, files, _, _ = socket.recv_fds(caller, 1, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    with caller.makefile("rb") as sent:
        asked = json.load(sent)
    if (process := os.fork()) == 0:
        signal.alarm(SECONDS)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environ"])
        sys.path[0] = asked["folder"]
        end(lambda: carry_out(asked["words"]))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    caller.sendall(str(code % 256).encode())
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
