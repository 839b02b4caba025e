"""A reader of W&B's files and a server that its client can talk to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "0123456789abcdef" * 2 + "01234567"


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


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no error here."""


class StandInServer:
    """Answers the real wandb client as far as a run needs it, and keeps what it was sent."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.resumes_at: int | None = None
        self.hangs = threading.Event()
        self.http = QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        project = {"id": "p", "name": "proj", "entity": {"id": "e", "name": "ent"}}
        bucket = {"id": "UnVu", "name": variables.get("name"), "displayName": "d", "config": "{}"}
        bucket |= {"project": project, "historyLineCount": 0, "eventsLineCount": 0}
        bucket |= {"logLineCount": 0, "historyTail": "[]", "eventsTail": "[]", "tags": []}
        bucket |= {"summaryMetrics": "{}", "wandbConfig": "{}", "createdAt": "2024-01-01T00:00:00"}
        if self.resumes_at is not None:
            row = json.dumps({"_step": 2, "step": self.resumes_at, "_runtime": 5})
            bucket |= {
                "historyLineCount": 3,
                "eventsLineCount": 0,
                "historyTail": json.dumps([row]),
                "summaryMetrics": row,
            }
            bucket["wandbConfig"] = json.dumps({"t": 1})
        match match and match.group(1):
            case "RunResumeStatus":
                return {"model": {**project, "bucket": bucket if self.resumes_at else None}}
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": bucket, "inserted": not self.resumes_at}}
            case "CreateRunFiles":
                files = [{"name": n, "uploadUrl": f"{self.url}/up/{n}"} for n in variables["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def take(self, files: dict[str, Any]) -> None:
        rows = files.get("wandb-history.jsonl", {}).get("content", [])
        self.history += [json.loads(row) for row in rows]
        for row in files.get("wandb-summary.json", {}).get("content", []):
            self.summary = json.loads(row)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if server.hangs.is_set():
                    threading.Event().wait(60)
                reply: dict[str, Any] = {}
                if self.path == "/graphql":
                    request = json.loads(body)
                    answer = server.answer(request["query"], request.get("variables") or {})
                    reply = {"data": answer}
                elif self.path.endswith("/file_stream"):
                    server.take(json.loads(body).get("files") or {})
                text = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PUT = do_POST  # noqa: N815

        return Handler


@pytest.fixture
def server() -> Iterator[StandInServer]:
    server = StandInServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def key() -> str:
    """A well-formed key of nobody."""
    return KEY
