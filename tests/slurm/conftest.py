"""The cluster that tests submit to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, environment, there_is_one


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """The cluster, with at least two nodes. Jobs of the test are ended with it."""
    environ = environment()
    if not there_is_one(environ):
        assert "CI" not in os.environ, "there is no cluster; .ci/run starts one"
        pytest.skip("sinfo shows no cluster")
    made = Cluster(tmp_path, environ)
    yield made
    for job in made.jobs:
        subprocess.run(["scancel", job], env=environ, check=False, capture_output=True)
