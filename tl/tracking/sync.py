"""`tl sync`: send what W&B lacks of a run's record into the run's own W&B run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl import arguments as config_arguments
from tl import yaml12
from tl.config import Config
from tl.errors import UserError
from tl.tracking import jsonl
from tl.tracking.findings import FOLDER
from tl.tracking.status import read_status
from tl.tracking.tracker import CONFIG, RUN_ID, SUMMARY, RunInfo, one_line
from tl.tracking.wandb import EXIT_CODES
from tl.tracking.wandb_extras import send_models, send_tables, staged_in
from tl.tracking.wandb_place import (
    KEYS,
    is_whole,
    note_whole,
    only_sender,
    read_place,
    write_place,
)
from tl.tracking.wandb_rows import NOTHING, Positions, Row, rows_of
from tl.tracking.wandb_server import OnServer, ServerError, ask
from tl.tracking.wandb_service import (
    Sender,
    abandon_service,
    has_credentials,
    open_run,
    server_and_key,
    set_up,
)
from tl.tracking.wandb_settings import Mode, init_arguments, quiet_settings, resolve_mode
from tl.tracking.wandb_summary import summary_of

ANSWER_SECONDS = 10.0
"""how long the server may take for one answer"""
INIT_SECONDS = 60.0
"""how long it may take to open a run"""
FINISH_SECONDS, FINISH_SECONDS_PER_LINE = 60.0, 0.01
"""how long it may take to take the lines"""
MODEL_SECONDS = 3600.0
"""how long it may take to take a model"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """What a run's folder says of it."""

    run_dir: Path
    arguments: dict[str, Any]
    """of ``wandb.init``"""
    place: dict[str, Any]
    """where the run has been in W&B; empty if it never has"""
    rows: list[Row]
    summary: dict[str, Any]
    """summary.json, or of a run that goes on or has died what it has reached"""
    state: str
    config: Config

    def lacking(self, there: OnServer) -> list[Row]:
        """The rows that the server does not have."""
        return [row for row in self.rows if row[0] > there.position]

    def lacks_extras(self, there: OnServer) -> bool:
        """Whether the run has tables or a model for W&B that it may not have."""
        has_some = (self.run_dir / FOLDER).is_dir() or self.config.tracking.wandb.model != "none"
        known = there.summary is not None and is_whole(self.place, self.summary)
        return self.state == "done" and has_some and not known

    def is_complete(self, there: OnServer) -> bool:
        """Whether the server has all rows and the summary."""
        has = there.summary
        return (
            has is not None
            and not self.lacking(there)
            and not self.lacks_extras(there)
            and all(key in has and has[key] == value for key, value in self.summary.items())
        )


def sync(
    run_dirs: Sequence[Path],
    *,
    dry_run: bool = False,
    environ: Mapping[str, str] | None = None,
    say: Say = print,
) -> None:
    """Send what W&B lacks of each run, and say for each where it is.

    Args:
        dry_run: only say how many lines would be sent.

    Raises:
        UserError: before anything is sent, that there is no run in a folder, no key, or that W&B is
            off; then that the server does not answer; at the end, what could not be sent.
    """
    environ = os.environ if environ is None else environ
    records = [read_record(run_dir, environ) for run_dir in run_dirs]
    mode = _mode(environ)
    mistakes = []
    for record in records:
        try:
            if mode == "offline":
                _write_offline(record, dry_run, say)
            else:
                _send(record, dry_run, environ, say)
        except ServerError:
            raise
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))


def _mode(environ: Mapping[str, str]) -> Mode:
    # Not as the config says: a run that was not to be sent while it ran is to be sent now.
    mode, why = resolve_mode("auto", environ, lambda: has_credentials(environ))
    if mode == "disabled" or (mode == "offline" and why):
        raise UserError(why.replace(", so the run is recorded offline", ""))
    return mode


def read_record(run_dir: Path, environ: Mapping[str, str]) -> Record:
    """Everything that is sent of a run.

    Raises:
        UserError: there is no run in the folder, or a file of it is not as it was written.
    """
    for name in (CONFIG, RUN_ID):
        if not (run_dir / name).is_file():
            raise UserError(f"{run_dir}: no run is in that folder (no {name})")
    config = _config(run_dir / CONFIG)
    run_id = (run_dir / RUN_ID).read_text().strip()
    values = {**config.model_dump(), "best": config.chosen_best.model_dump()}  # as the run's own
    info = RunInfo(values, run_dir, run_id, total_steps=0)
    place = read_place(run_dir)
    known = {key: place[key] for key in KEYS} if place else {}
    arguments = {**init_arguments(config.tracking.wandb, info, environ), **known}
    rows = rows_of(jsonl.read(run_dir / jsonl.FILE), Positions())
    summary = summary_of(rows, values["best"])
    if (run_dir / SUMMARY).is_file():
        try:
            summary |= json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{run_dir / SUMMARY} is not JSON: {error}") from None
    status = read_status(run_dir)
    state = status["state"] if status else "running"
    return Record(run_dir, arguments, place, rows, summary, state, config)


def _config(path: Path) -> Config:
    """The config that the run had, without running code that its strategy names."""
    tree, _ = yaml12.load(path.read_text(encoding="utf-8"), str(path))
    strategy = tree.get("strategy") if isinstance(tree, dict) else None
    if not isinstance(strategy, str) or ":" not in strategy:
        return config_arguments.load(path, environ={}).config
    config = config_arguments.load(path, ["strategy=head"], environ={}).config
    return config.model_copy(update={"strategy": strategy})


def _send(record: Record, dry_run: bool, environ: Mapping[str, str], say: Say) -> None:
    run_dir = record.run_dir
    server, key = server_and_key(environ)
    # The key goes nowhere because a folder says so, and the run not to another server by mistake.
    if record.place.get("server", server) not in ("", server):
        raise UserError(
            f"{run_dir} is a run at {record.place['server']}, and this would send it to {server}. "
            f"Set WANDB_BASE_URL={record.place['server']} if you trust it."
        )
    # Without a key there is a token, which only wandb can use.
    there = ask(server, key, record.arguments, ANSWER_SECONDS) if key else OnServer()
    lines = f"{len(record.lacking(there))} of {len(record.rows)} lines"
    if dry_run:
        say(f"{run_dir}: {lines} would be sent")
        return
    if record.is_complete(there):
        say(f"{run_dir}: W&B has it all: {record.place.get('link') or record.arguments['id']}")
        return
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with only_sender(run_dir, 0) as alone, scratch as folder:
        if not alone:
            raise UserError(
                f"{run_dir}: another process is sending this run to W&B, the training or another "
                "tl sync. Call tl sync when it has ended."
            )
        link, last = _replay(record, there, folder)
    if key and ask(server, key, record.arguments, ANSWER_SECONDS).position < last:
        raise UserError(f"{run_dir}: W&B did not take everything. Call tl sync again.")
    if record.state == "done":
        note_whole(run_dir, record.summary)
    say(f"{run_dir}: {lines} sent: {link}")


def _replay(record: Record, there: OnServer, folder: str) -> tuple[str, int]:
    """Send what the server lacks; returns the link, and the position of the last row.

    ``folder`` is for what wandb writes meanwhile.
    """
    seconds = FINISH_SECONDS + FINISH_SECONDS_PER_LINE * len(record.rows)
    try:
        run = open_run("online", _settings(record, seconds), {**record.arguments, "dir": folder})
    except Exception as error:
        abandon_service()
        raise ServerError(f"W&B cannot be reached: {one_line(error)}") from error
    link = run.url or ""
    write_place(record.run_dir, record.arguments, run.settings.base_url, link)
    try:
        extras = record.lacks_extras(there)
        with staged_in(Path(folder)):
            last = _fill(run, record, run.starting_step - 1, tables=extras, models=extras)
    except Exception as error:
        abandon_service()
        why = f"in {seconds:.0f} s" if isinstance(error, TimeoutError) else f"({one_line(error)})"
        raise ServerError(
            f"{record.run_dir}: W&B did not take everything {why}. Call tl sync again: it sends "
            "the rest."
        ) from error
    return link, last


def _write_offline(record: Record, dry_run: bool, say: Say) -> None:
    if dry_run:
        say(f"{record.run_dir}: {len(record.rows)} lines would be written")
        return
    run = open_run(
        "offline", quiet_settings(set_up(), INIT_SECONDS, FINISH_SECONDS), record.arguments
    )
    with staged_in(Path(record.arguments["dir"], "wandb")):
        _fill(run, record, NOTHING, tables=True, models=False)
    say(f"{record.run_dir}: W&B: offline; to upload it: wandb sync {run.settings.sync_dir}")


def _fill(run: Any, record: Record, position: int, *, tables: bool, models: bool) -> int:
    """Send it all and end the run; returns the position of its last row."""
    sender = Sender(run, record.arguments["config"]["best"], position)
    for row in record.rows:
        sender.send(row)
    run.summary.update(record.summary)
    if tables and record.state == "done":
        send_tables(sender, record.run_dir, record.summary.get("steps", 0))
    if models and (which := record.config.tracking.wandb.model) != "none":
        send_models(run, record.run_dir, which, MODEL_SECONDS)
    if record.state == "preempted":
        run.mark_preempting()
    run.finish(exit_code=EXIT_CODES.get(record.state, 1))
    return sender.position


def _settings(record: Record, finish_seconds: float) -> Any:
    return quiet_settings(
        set_up(),
        INIT_SECONDS,
        finish_seconds,
        # This machine and this command are not what the run was trained with.
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        # A run that goes on, or died without a word, has not finished. W&B sees that by itself.
        x_update_finish_state=record.state != "running",
    )
