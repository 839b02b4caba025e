"""Configs from anybody, by every way in: nothing is run, nothing repeated that may be a secret,
and each is one clear error, in bounded time and memory."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import evaluate, train
from tl import yaml12
from tl.arguments import load
from tl.config import Config
from tl.errors import UserError
from tl.mistakes import dotted, leaves


def mistake(*overrides: str, file: Path | None = None, **environ: str) -> str:
    """What is said of a config: little, and soon."""
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load(file, overrides, environ)
    assert time.process_time() - began < 30  # PyYAML reads a megabyte in up to 10 s
    assert len(str(caught.value)) < 10_000
    return str(caught.value)


# ------------------------------------------------------------------------- nothing in one is run

COMMAND = "!!python/object/apply:os.mkdir ['{sentinel}']"
CODE = [
    COMMAND,
    "!!python/object/new:os.mkdir ['{sentinel}']",
    "!!python/name:os.mkdir ''",
    "!!python/module:antigravity ''",
    "!!python/object/apply:subprocess.check_call [[mkdir, '{sentinel}']]",
    "!!python/object/apply:builtins.eval [\"__import__('os').mkdir('{sentinel}')\"]",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{sentinel}']",
    "!!python/object:tl.config.Config {{}}",
    "{{a: &a " + COMMAND + ", b: *a}}",
    "[1, {{? " + COMMAND + " : 1}}]",
]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("way", ["file", "environment", "command line"])
def test_code_is_refused_and_not_run_by_any_way_in(
    code: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    value = code.format(sentinel=tmp_path / "ran")
    run_dir = f"run_dir={tmp_path / 'run'}"
    (tmp_path / "run.yaml").write_text(f"data:\n  classes: {value}\n")
    if way == "file":
        arguments = [str(tmp_path / "run.yaml"), run_dir]
    elif way == "environment":
        monkeypatch.setenv("TL_DATA__CLASSES", value)
        arguments = [run_dir]
    else:
        arguments = [run_dir, f"data.classes={value}"]
    assert train.main(arguments) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


def test_the_config_of_a_folder_that_is_evaluated_is_not_run_either(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for code in CODE:
        value = code.format(sentinel=tmp_path / "ran")
        (tmp_path / "config.yaml").write_text(f"data: {{source: folder, classes: {value}}}\n")
        assert evaluate.main([str(tmp_path)]) == 2
        assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------- bounded time and memory

LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
TOO_MUCH = {
    "billion laughs": LAUGHS,
    "laughing keys": LAUGHS.replace("[lol]", "{k: lol}"),
    "one long text a thousand times": f"data: {{classes: [&x {'a' * 9000}{', *x' * 1000}]}}",
    "more than a megabyte": "# " + "x" * 2**20,
    "a long text": "run_dir: " + "x" * 2**20,
    "deep": "a: " + "[" * 30_000,
    "deep and closed": "a: " + "{a: " * 5000 + "}" * 5000,
    "deep blocks": "- " * 30_000,
    "question marks": "? " * 30_000,
    "itself": "a: &a [*a]",
    "a number": "seed: " + "9" * 5000,
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_too_much_is_refused_in_bounded_time_and_memory(kind: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(TOO_MUCH[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = mistake(file=tmp_path / "run.yaml")
    # PyYAML takes 200 bytes for a character at worst.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert re.search("more than|nested more|too long|too many", said)


def test_a_config_without_an_end_is_not_read_to_it() -> None:
    assert "too many for a config" in mistake(file=Path("/dev/zero"))


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"k{i}: 1\n" for i in range(5000)),
        f"data: {{classes: [{'1.5,' * 5000}]}}",
        f"data: {{{', '.join(f'k{i}: []' for i in range(5000))}}}",
        f"phases: [{'{},' * 5000}]",
        f"seed: {'x' * 500_000}",
        f"? {'x' * 500_000}\n: 1",
    ],
    ids=["keys", "items", "keys of a group", "phases", "value", "key"],
)
def test_of_many_or_long_mistakes_some_are_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert "run.yaml:" in mistake(file=tmp_path / "run.yaml")


@pytest.mark.parametrize("value", [f"[{'[],' * 9000}]", "{" + "a: 1, " * 2000 + "}", "x" * 99_999])
def test_a_long_value_on_the_command_line_or_in_the_environment_is_soon_refused(value: str) -> None:
    assert "command line: data.classes" in mistake(f"data.classes={value}")
    assert "environment: TL_DATA__CLASSES" in mistake(TL_DATA__CLASSES=value)


# ----------------------------------------------------------------------- values that are not theirs

# What YAML 1.1 makes other things of.
LOOKALIKES = ["1e-3", "no", "12:30", "0o17", "0x1f", ".inf", "-.INF", ".nan", "1e400", "~", "=",
              "on", "2024-01-31", "1_000.5", "9" * 4000]  # fmt: skip


@pytest.mark.parametrize("value", LOOKALIKES)
def test_a_value_means_the_same_by_every_way_in(value: str, tmp_path: Path) -> None:
    """And is a whole number by none."""
    outcomes = []
    (tmp_path / "run.yaml").write_text(f"optimizer:\n  lr: {value}\nepochs: {value}\n")
    for overrides, environ, file in (
        ((), {}, tmp_path / "run.yaml"),
        ((), {"TL_OPTIMIZER__LR": value, "TL_EPOCHS": value}, None),
        ((f"optimizer.lr={value}", f"epochs={value}"), {}, None),
    ):
        said = mistake(*overrides, file=file, **environ)
        outcomes.append([line.partition(" (")[0] for line in sorted(said.splitlines())])
        assert any(line.startswith("epochs: ") for line in outcomes[-1])
        assert any(line.startswith("optimizer.lr: ") for line in outcomes[-1]) == (
            value not in ("1e-3", "1_000.5")
        )
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert load(None, ["optimizer.lr=1e-3"], {}).config.optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seed: 1\nseed: 2\n", ":2: the key 'seed' stands here a second time"),
        (b"a: &a {x: 1}\nb:\n  <<: *a\n", ":3: merge keys"),
        (b"? [1]\n: 1\n", ":1: a key must be a word"),
        (b"1: 2\n", ":1"),
        (b"a:\n\tb: 1\n", ":2: not YAML"),
        (b"seed: \xff", "is not a text file in UTF-8"),
        ("seed: 1".encode("utf-16"), "is not a text file in UTF-8"),
        (b"seed: \xed\xa0\x80", "is not a text file in UTF-8"),
        (b"seed: \0", "not YAML"),
        (b"seed: \x1b[2J", "not YAML"),
        (b"\x80\x04}\x94.", "is not a text file in UTF-8"),
        (b"%YAML 3.0\n---\nseed: 1", "not YAML"),
        (b"--- 1\n--- 2\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_config_says_where_and_why(
    content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    said = mistake(file=tmp_path / "run.yaml")
    assert says in said
    assert "\x1b" not in said
    assert len(said.splitlines()) == 1


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load(tmp_path / "run.yaml", [], {}).config.seed == 3


@settings(max_examples=300, deadline=None)
@given(st.text("ab:{}[]&*!|>'\"#%@`,?- \n\t0123456789.<~\\=\udcff\x00é", max_size=40))
def test_any_text_is_a_value_or_a_mistake(text: str) -> None:
    with contextlib.suppress(UserError):
        yaml12.load(text, "here")
    with contextlib.suppress(UserError):
        load(None, [f"data.classes={text}"], {})
    with contextlib.suppress(UserError):
        load(None, [], {"TL_RUN_DIR": text})


def test_bytes_that_are_no_text_are_a_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    assert train.main([os.fsdecode(b"run_dir=/tmp/caf\xe9")]) == 2
    assert r"command line: run_dir=/tmp/caf\xe9: not YAML" in capfd.readouterr().err


WHOLE_NUMBERS = [
    dotted(path)
    for path, field in leaves(Config)
    if "int" in str(field.annotation) and not re.search("list|dict|str", str(field.annotation))
]


@pytest.mark.parametrize("key", WHOLE_NUMBERS)
def test_a_number_larger_than_any_computer_counts_is_refused(key: str) -> None:
    assert len(WHOLE_NUMBERS) > 15
    for digits in (20, 4000):
        said = mistake(f"{key}=1{'0' * digits}")
        assert said.startswith(f"{key}: must be less than or equal to ")


# ---------------------------------------------------------------------------------------- secrets

NO_KEYS = {
    "lr": "unknown key 'lr'. Did you mean 'optimizer.lr'?",
    "wandb.mode": "unknown key 'wandb'.",
    "WANDB_API_KEY": "unknown key 'WANDB_API_KEY'.",
    "tracking.wandb.api_key": "unknown key 'tracking.wandb.api_key'.",
    "optimizer.learning_rate": "unknown key 'optimizer.learning_rate'.",
    "optimiser.lr": "unknown key 'optimiser'. Did you mean 'optimizer.lr'?",
    "nesterov": "unknown key 'nesterov'. Did you mean 'optimizer.nesterov'?",
    "phases.0.password": "unknown key 'phases.0.password'.",
    "phases.head.epochs": "phases has 1 items, counted from 0; there is no head",
    "phases.².epochs": "phases has 1 items, counted from 0; there is no ²",
    "phases.password": "phases has 1 items, counted from 0; there is no password",
    "seed.x": "seed: must be a valid integer.",
    "optimizer-lr": "'optimizer-lr' is not a key such as optimizer.lr",
    "": "'' is not a key such as optimizer.lr",
    "0": "'0' is not a key such as optimizer.lr",
    "optimizer..lr": "'optimizer..lr' is not a key such as optimizer.lr",
}
SECRETS = [
    "hunter2", "*hunter2", "!hunter2", "!!hunter2 x", "&hunter2", "{hunter2", "'hunter2",
    "\thunter2", "a: hunter2: b", "{hunter2: 1, hunter2: 2}", "? [hunter2]", "@hunter2",
    "%hunter2", "hunter2\x1b", "<<hunter2: 1", "|hunter2",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_is_repeated_without_its_value_which_may_be_a_secret(
    key: str, secret: str
) -> None:
    said = mistake(f"{key}={secret}")
    assert said.startswith(NO_KEYS[key])
    assert said.endswith(f"(command line: {key})")
    assert "hunter2" not in said
    if re.fullmatch(r"\w+(\.\w+)*", key):
        variable = "TL_" + key.replace(".", "__").upper()
        assert "hunter2" not in mistake(**{variable: secret})
