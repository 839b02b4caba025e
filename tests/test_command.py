"""How a command ends: its exit code, and one message from the process that has to say it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS, FILES
from tl.command import BAD_INPUT, DONE, FAILURE, PREEMPTED, Parser, exit_code, split_config
from tl.errors import LostPeer, OnOneProcessError, PeerFailed, Preempted, UserError


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_in_whatever_a_command_does(
    given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set before torch is imported, which reads it once; a user's own choice stays."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    seen: list[str | None] = []
    assert exit_code(lambda: seen.append(os.environ.get("OMP_WAIT_POLICY"))) == DONE
    assert seen == [found]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_carried_out_in_that_way(command: str) -> None:
    file = Path(__file__).parents[1] / "launch" / f"{FILES.get(command, command)}.py"
    assert "exit_code(" in file.with_name(file.name.replace("-", "_")).read_text("utf-8")


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no such file"), BAD_INPUT),
        (OnOneProcessError("bad image"), BAD_INPUT),
        (RuntimeError("it broke"), FAILURE),
        (KeyboardInterrupt(), FAILURE),
        (Preempted("stopped after step 3, SIGTERM"), PREEMPTED),
        (LostPeer("rank 1 is gone"), FAILURE),
        (PeerFailed(), FAILURE),
    ],
)
def test_the_exit_code_says_whose_fault_it_is_on_every_rank(
    error: BaseException, code: int, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert exit_code(raising(error)) == code


def test_a_command_that_returns_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: 7) == DONE
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "rank", "said"),
    [
        (UserError("no such file"), "0", "error: no such file\n"),
        (UserError("no such file"), "3", ""),  # the main process says it for all
        (OnOneProcessError("bad image"), "3", "error: bad image\n"),
        (KeyboardInterrupt(), "0", "interrupted\n"),
        (KeyboardInterrupt(), "1", ""),
        (Preempted("stopped after step 3, SIGTERM"), "0", "stopped after step 3, SIGTERM\n"),
        (Preempted("stopped after step 3, SIGTERM"), "1", ""),
        (LostPeer("rank 0 is gone"), "1", "error: rank 0 is gone\n"),  # said by who noticed
        (PeerFailed(), "0", ""),
    ],
)
def test_a_message_is_said_once(
    error: BaseException,
    rank: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    exit_code(raising(error))
    assert capsys.readouterr() == ("", said)


def test_a_defect_is_said_with_its_rank_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    exit_code(raising(RuntimeError("it broke")))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Traceback")
    assert err.endswith("error on rank 3: RuntimeError: it broke\n")


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    code = (
        "import sys; from tl.command import exit_code\n"
        "sys.exit(exit_code(lambda: [print('x' * 1000, flush=True) for _ in range(1000)]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == FAILURE


@pytest.mark.parametrize(("rank", "lines"), [("0", 3), ("1", 0)])
def test_a_usage_error_is_said_by_the_main_process_alone(
    rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as caught:
        Parser(prog="train").parse_args(["--no-such-thing"])
    assert caught.value.code == BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key=hunter2"],
        ["-k=hunter2 x"],
        ["--a", "--b=1=hunter2", "--c=hunter2"],
        ["--p=hunter2"],
    ],
)
def test_an_option_that_there_is_not_is_repeated_without_its_value_which_may_be_a_secret(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser(prog="train")
    for option in ("--print-config", "--print-schema"):
        parser.add_argument(option, action="store_true")
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    said = capsys.readouterr().err
    assert arguments[0].partition("=")[0] in said
    assert "hunter2" not in said


@pytest.mark.parametrize("error", [UserError, OnOneProcessError, RuntimeError])
def test_a_message_does_not_steer_the_terminal(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code(raising(error("two lines\n\x1b[2J\u202e of \udcff")))
    said = capsys.readouterr().err
    assert said.endswith("two lines\n\\x1b[2J\\u202e of \\xff\n")
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (None, [])),
        (["run.yaml"], ("run.yaml", [])),
        (["a=1", "run.yaml", "b.c=x=y"], ("run.yaml", ["a=1", "b.c=x=y"])),
        (["data.root=/a/b"], (None, ["data.root=/a/b"])),
        (["runs/lr=0.1/config.yaml", "seed=1"], ("runs/lr=0.1/config.yaml", ["seed=1"])),
    ],
)
def test_a_config_is_told_from_its_overrides(
    arguments: list[str], expected: tuple[str | None, list[str]]
) -> None:
    assert split_config(arguments) == expected


def test_a_second_config_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.yaml and b\.yaml: one config at a time"):
        split_config(["a.yaml", "seed=1", "b.yaml"])
