"""wandb.json, which says where in W&B a run is; and that only one process at a time sends it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl.atomic import write_json_atomically
from tl.errors import UserError
from tl.file_lock import lock

FILE, LOCK = "wandb.json", ".wandb.lock"
KEYS = ("project", "entity", "name", "group", "job_type", "tags", "notes", "id")


def write_place(run_dir: Path, arguments: dict[str, Any], server: str = "", link: str = "") -> None:
    """Note where the run is to be in W&B, and ``server`` and ``link`` once it is there.

    Part of it comes from the environment, which may be another when the run is sent later.
    """
    place = {key: arguments[key] for key in KEYS}
    before = read_place(run_dir)
    whole = ""
    if all(before.get(key) == place[key] for key in ("project", "entity", "id")):
        if not server:  # it has been there, and is offline now
            server, link = before["server"], before["link"]
        if server == before["server"]:
            whole = before["whole"]
    place |= {"server": server, "link": link, "whole": whole}
    write_json_atomically(run_dir / FILE, place)


def note_whole(run_dir: Path, summary: dict[str, Any]) -> None:
    """Note that W&B has the tables and models of a run that is done; its rows it counts itself."""
    digest = summary.get("model_sha256", "")
    write_json_atomically(run_dir / FILE, {**read_place(run_dir), "whole": digest})


def is_whole(place: dict[str, Any], summary: dict[str, Any]) -> bool:
    """Whether W&B has the tables and models of a run with that summary."""
    return bool(place) and place["whole"] == summary.get("model_sha256", "")


def read_place(run_dir: Path) -> dict[str, Any]:
    """What `write_place` wrote; empty if it never has.

    Raises:
        UserError: the file is not one that `write_place` wrote.
    """
    path = run_dir / FILE
    try:
        place = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}. Put it right, or delete it.") from None
    if not isinstance(place, dict) or place.keys() != {*KEYS, "server", "link", "whole"}:
        raise UserError(f"{path} does not say where in W&B the run is. Delete it.")
    return place


@contextlib.contextmanager
def only_sender(run_dir: Path, seconds: float) -> Iterator[bool]:
    """Whether this process may send the run; false if for ``seconds`` another one does.

    Two that send one run would each count its rows for themselves. Where the folder may not be
    written nobody is kept from sending.
    """
    try:
        file = (run_dir / LOCK).open("a")
    except OSError:
        yield True
        return
    with file:
        yield lock(file, seconds)
