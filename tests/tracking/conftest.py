"""A reader of W&B's files and a server that its client can talk to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .stand_in_server import StandInServer


@pytest.fixture
def read_wandb_file() -> Any:
    return _read_wandb_file


def _read_wandb_file(path: Path) -> dict[str, Any]:
    """Run id, config, history rows, summary and exit code in a ``.wandb`` file.

    The file is a LevelDB log (blocks of 32 KiB, records with crc, length and type) of protobufs.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    result: dict[str, Any] = {"id": None, "config": {}, "history": [], "summary": {}, "text": data}
    position, message = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = (
            int.from_bytes(data[position + 4 : position + 6], "little"),
            data[position + 6],
        )
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            _add(result, Record.FromString(message))
            message = b""
    return result


def _add(result: dict[str, Any], record: Any) -> None:
    def values(items: Any) -> dict[str, Any]:
        return {
            item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items
        }

    kind = record.WhichOneof("record_type")
    if kind == "run":
        result["id"] = record.run.run_id
        result["config"].update(values(record.run.config.update))
        result["run"] = record.run
    elif kind == "history":
        result["history"].append(values(record.history.item))
    elif kind == "summary":
        result["summary"].update(values(record.summary.update))
    elif kind == "exit":
        result["exit_code"] = record.exit.exit_code


@pytest.fixture
def server() -> Iterator[StandInServer]:
    server = StandInServer()
    yield server
    server.close()
