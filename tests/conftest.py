"""What all tests share: real data beside the checkout, and processes that import torch once."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# As the commands do, before torch is imported anywhere; see tl.command.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tolerances are those of float32, also where a CPU has bf16 in silicon; see tl.engine.precision.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
# No test may reach a server, or depend on who is logged in.
os.environ["WANDB_MODE"] = "disabled"
# No test may find what another session has computed, or leave it in the user's home.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tl-tests-cache-")

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gloo_workers import GlooWorkers

ROOT = Path(__file__).parents[1]

# A shell lets what it starts in the background ignore these, and tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(name, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported and collected; for the runs of tests, as in gloo_workers.py


@pytest.fixture(scope="session")
def gloo_workers() -> Iterator[GlooWorkers]:
    """Processes for functions of tests to run in, 1 to 4 at a time; started when first needed."""
    workers = GlooWorkers()
    yield workers
    workers.stop()


@pytest.fixture
def not_root() -> Iterator[Path]:
    """A folder of one who is not allowed everything, as whom the test runs; root would be."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as folder:
        if is_root := os.geteuid() == 0:
            os.chown(folder, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data and weights beside the checkout. In CI they must be there."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing, and CI is set")
        pytest.skip(f"no {folder}")
    return folder
