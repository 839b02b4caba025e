"""What a W&B server has of a run: the one question that wandb itself does not answer in time.

The query is that of wandb's own service when it resumes a run. wandb's public API would ask as
well, but it waits without limit for a server that does not answer, also when the process ends.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from tl.errors import UserError
from tl.tracking.wandb_rows import NOTHING
from tl.tracking.wandb_settings import LOG_IN

_QUERY = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyTail summaryMetrics }
  }
}
"""


class ServerError(UserError):
    """The server cannot be reached, or will not talk to us."""


class KeyRefused(ServerError):
    """The server does not know the key."""


@dataclass(frozen=True)
class OnServer:
    """What there is of a run."""

    position: int = NOTHING
    """of the last row; see `tl.tracking.wandb_rows`"""
    summary: dict[str, Any] | None = None
    """None: there is no such run yet"""


def ask(server: str, key: str, place: dict[str, Any], seconds: float) -> OnServer:
    """What ``server`` (a URL) has of the run at ``place`` (see `tl.tracking.wandb_place`).

    Raises:
        ServerError: it does not say, with what to do about it.
    """
    answer = _exchange(server, key, place, seconds)
    try:
        if answer.get("errors"):
            what = f"W&B at {server} answers: {answer['errors'][0]['message']}"
        else:
            run = (answer["data"].get("model") or {}).get("bucket")
            return OnServer() if run is None else _read(run)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{server} does not answer as W&B does ({type(error).__name__}: {error})"
    raise ServerError(what)


def answers(url: str, seconds: float) -> bool:
    """Whether the server of ``url`` answers at all, with an error or without."""
    request = urllib.request.Request(url, headers={"User-Agent": "transfer-launcher"})
    try:
        _opener(request.host).open(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _read(run: dict[str, Any]) -> OnServer:
    rows = [json.loads(row) for row in json.loads(run["historyTail"] or "[]")]
    positions = [row["_step"] for row in rows if "_step" in row]
    return OnServer(max(positions, default=NOTHING), json.loads(run["summaryMetrics"] or "{}"))


def _exchange(server: str, key: str, place: dict[str, Any], seconds: float) -> Any:
    variables = {"project": place["project"], "entity": place["entity"], "name": place["id"]}
    request = urllib.request.Request(
        f"{server.rstrip('/')}/graphql",
        data=json.dumps({"query": _QUERY, "variables": variables}).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode(),
            "Content-Type": "application/json",
            "User-Agent": "transfer-launcher",
        },
    )
    try:
        with _opener(request.host).open(request, timeout=seconds) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            what = f"refuses the key ({error.code} {error.reason}); {LOG_IN}"
            raise KeyRefused(f"W&B at {server} {what}") from None
        what = f"answers {error.code} {error.reason}. Try again later."
    except OSError as error:
        what = f"cannot be reached ({getattr(error, 'reason', error)}). Try again when it can."
    except ValueError:
        what = "does not answer as W&B does. Is that the right WANDB_BASE_URL?"
    raise ServerError(f"W&B at {server} {what}")


def _opener(host: str) -> urllib.request.OpenerDirector:
    """With the proxies that wandb's service would take: none for this machine's own servers.

    A new one each time: urllib's own keeps the proxies that were set when it was first used.
    """
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    if name in ("localhost", "::1") or name.startswith("127."):
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()
