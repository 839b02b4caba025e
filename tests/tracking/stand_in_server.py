"""A W&B server for tests: it answers the real client as far as a run needs it.

What wandb 0.31 sends was found by logging it. A run begins with two queries to ``/graphql``:
`RunResumeStatus`, whose answer says what the server has, and `UpsertBucket`. Rows, summary and the
end of the run go to ``/files/ENTITY/PROJECT/RUN/file_stream``; rows carry the number of lines that
come before them, and replace what is there. Files get an address by `CreateRunFiles` and are PUT.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .stand_in_artifacts import Artifacts

KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = {"id": "e", "name": "ent"}


@dataclass
class StoredRun:
    """What the server has of a run."""

    variables: dict[str, Any]
    """of the last UpsertBucket that named it"""
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    """every row of every request, in the order of their coming"""
    exit_codes: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    """system metrics"""
    modes: set[str | None] = field(default_factory=set)
    """what those who sent to it said of themselves; None: nothing, it is theirs alone"""


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no error here."""


class StandInServer:
    """See the module. ``fault`` is how it fails from now on.

    ``hangs``: takes a request and never answers. ``refuses``: closes the connection.
    ``500``, ``401``, …: answers with that code. ``deaf``: does what it is asked, and never answers.
    A fault after a slash is one of the file stream alone: ``stream/500``; or of what artifacts are
    PUT to: ``artifacts/500``.
    """

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.fault = ""
        self.requests: list[str] = []
        self.artifacts = Artifacts()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._http = QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.artifacts.url = self.url
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._closed.set()  # lets go of the requests that hang
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        asked = match.group(1) if match else ""
        if (of_artifact := self.artifacts.answer(asked, variables)) is not None:
            return of_artifact
        name = variables.get("name") or ""
        run = self.runs.get(name)
        match asked:
            case "RunResumeStatus":
                project = {"id": "p", "name": variables["project"], "entity": ENTITY}
                return {"model": {**project, "bucket": run and self._bucket(name, run)}}
            case "UpsertBucket":
                run = self.runs.setdefault(name, StoredRun({}))
                run.variables |= {k: v for k, v in variables.items() if v is not None}
                return {"upsertBucket": {"bucket": self._bucket(name, run), "inserted": True}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "CreateRunFiles":
                files = [{"name": n, "uploadUrl": f"{self.url}/up/{n}"} for n in variables["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self, name: str, run: StoredRun) -> dict[str, Any]:
        return {
            "id": "UnVu",
            "name": name,
            "displayName": run.variables.get("displayName"),
            "project": {"id": "p", "name": run.variables["project"], "entity": ENTITY},
            "config": run.variables.get("config", "{}"),
            "tags": run.variables.get("tags") or [],
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "summaryMetrics": json.dumps(run.summary),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}),
            "createdAt": "2024-01-01T00:00:00",
        }

    def _take(self, name: str, body: dict[str, Any], mode: str | None) -> None:
        run = self.runs[name]
        run.modes.add(mode)
        files = body.get("files") or {}
        run.events += [
            json.loads(e) for e in files.get("wandb-events.jsonl", {}).get("content", [])
        ]
        history = files.get("wandb-history.jsonl")
        if history:
            rows = [json.loads(row) for row in history["content"]]
            start = history["offset"]
            assert start <= len(run.history), "a gap in the rows"
            run.history[start : start + len(rows)] = rows
            run.sent += rows
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])

    def _fault_of(self, path: str) -> str:
        where, _, fault = self.fault.rpartition("/")
        there = {"": True, "stream": path.endswith("/file_stream"),
                 "artifacts": path.startswith("/artifacts/")}  # fmt: skip
        return fault if there[where] else ""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append(self.path)
                fault = server._fault_of(self.path)
                if fault in ("", "deaf"):
                    code, reply = self._serve(body)
                if fault in ("hangs", "deaf"):
                    server._closed.wait()
                if fault in ("hangs", "deaf", "refuses"):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if fault:
                    code, reply = int(fault), {"error": "told to"}
                text = json.dumps(reply).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _serve(self, body: bytes) -> tuple[int, dict[str, Any]]:
                if self.path.startswith("/artifacts/"):
                    server.artifacts.take(self.path, body)
                    return 200, {}
                if self.path.startswith("/up/"):  # by its address, which needs no key
                    return 200, {}
                authorization = base64.b64encode(f"api:{KEY}".encode()).decode()
                if self.headers.get("Authorization") != f"Basic {authorization}":
                    return 401, {"errors": [{"message": "who are you"}]}
                request = json.loads(body)
                with server._lock:
                    if self.path.endswith("/file_stream"):
                        mode = self.headers.get("X-Wandb-Use-Async-Filestream")
                        server._take(self.path.split("/")[-2], request, mode)
                        return 200, {}
                    variables = request.get("variables") or {}
                    return 200, {"data": server._answer(request["query"], variables)}

            do_GET = do_PUT = do_POST  # noqa: N815

        return Handler


def closed_port() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
