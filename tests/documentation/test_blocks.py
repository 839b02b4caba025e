"""Every command that the documentation shows works as it is written.

A page's blocks are run in their order, as a reader would follow it: see `shell` and `commands`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from blocks import COMMAND, CONFIGS, PAGES, ROOT, blocks_of, header_block, name_of
from shell import Shell

SLOW = {"docs/export.md", "docs/domain_adaptation.md", "docs/wandb.md"}
"""many runs, each with processes of its own"""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if name_of(page) in SLOW else [])
        for page in PAGES
        if name_of(page) != "docs/guide.md"  # which has a test of its own
    ],
    ids=name_of,
)
def test_the_blocks_of_a_page_work_in_their_order(
    page: Path, open_shell: Callable[[], Shell]
) -> None:
    blocks = [block for block in blocks_of(page) if block.language == "bash"]
    shell = open_shell()
    for block in blocks:
        done = shell.run(block.text)
        said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, f"{name_of(page)}:{block.line}:\n{block.text}\n{said}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_stands_in_a_block_that_is_run(page: Path) -> None:
    for block in blocks_of(page):
        if block.language != "bash":
            hidden = [line for line in block.text.splitlines() if COMMAND.match(line)]
            assert not hidden, f"{name_of(page)}:{block.line}: begin the block with ```bash"


@pytest.mark.slow
def test_the_guide_works_with_the_commands_themselves(open_shell: Callable[[], Shell]) -> None:
    shell = open_shell()
    shell.environ = {**shell.environ, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    for block in blocks_of(ROOT / "docs" / "guide.md"):
        if block.language == "bash":
            done = shell.run(block.text)
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_command_in_the_header_of_a_config_works(
    config: Path, open_shell: Callable[[], Shell]
) -> None:
    block = header_block(config)
    done = open_shell().run(block.text)
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
