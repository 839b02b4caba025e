"""The shell that runs what the documentation shows."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from shell import Shell, environment, open_folder, start_commands


@pytest.fixture(scope="session")
def open_shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Shell]]:
    """A shell in a folder of its own; all share the runs that are made for them."""
    place = tmp_path_factory.mktemp("documentation")
    trained = place / "trained"
    trained.mkdir()
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 107 characters at most
        socket = Path(short) / "commands"
        server = start_commands(socket)
        environ = environment(place, socket)
        folders = (place / f"folder{number}" for number in range(10**6))
        yield lambda: Shell(open_folder(next(folders)), environ, trained)
        server.terminate()
        server.wait()
