"""The page of one run: its numbers in words, drawings and tables, put into the template."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tl.atomic import write_text_atomically
from tl.errors import printable
from tl.report import answers, sections
from tl.report.advice import advice
from tl.report.pictures import Pictures
from tl.report.plan_drawing import plan_drawing
from tl.report.record import Record
from tl.report.svg import short
from tl.tracking.tracker import CONFIG

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_CONFIG = 30_000
"""characters of config.yaml that are shown"""


def write_page(record: Record, pictures: Pictures, path: Path) -> None:
    """Write the page of a run to ``path``: the old one or the new one, never half of it."""
    write_text_atomically(path, render("run.html", page(record, pictures)))


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page as text. It may load nothing, and its style is the only one that it obeys.

    All that is put into the template is escaped, and shown by visible letters alone.
    """
    style = (TEMPLATES / "style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return _environment().get_template(template).render(
        **values, style=Markup(style), style_sha256=digest
    )  # fmt: skip


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    made.filters |= {"short": short, "percent": percent, "duration": duration, "bytes": bytes_}
    made.filters["thousands"] = "{:,}".format
    return made


def _visible(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value, keep="\n")
    return value


def percent(value: float | None) -> str:
    """``91.5 %``."""
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 10 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def bytes_(count: float) -> str:
    """``1.4 GiB``."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB"


def page(record: Record, pictures: Pictures) -> dict[str, Any]:
    """What the template of one run is given."""
    phases = record.phases
    return {
        "name": record.name,
        "state": record.state,
        "step": record.steps,
        "subject": subject(record),
        "verdict": sections.verdict(record),
        "advice": advice(record),
        "facts": quick_facts(record),
        "plan": plan_drawing(phases, "plan") if phases else None,
        "phases": sections.phase_rows(record),
        "phase_keys": sections.PHASE_KEYS,
        "charts": sections.curves(record),
        "adaptation": sections.adaptation(record),
        "oracle": sections.oracle(record),
        "confusion": answers.confusion(record),
        "classes": answers.classes(record),
        "calibration": answers.calibrated(record),
        "mistakes": answers.grid(record, pictures, "mistakes"),
        "unsure": answers.grid(record, pictures, "unsure"),
        "augmentation": sections.augmentation(record, pictures),
        "why_no_pictures": pictures.why_not,
        "time": sections.time_and_memory(record),
        "command": command(record),
        "config": _config(record),
        "missing": record.missing,
    }


def subject(record: Record) -> str:
    """What was trained on what, in a line."""
    facts = record.facts
    if not facts:
        return str(record.config.get("model", {}).get("name", ""))
    data = str(facts["data"])
    name = Path(data).name if data.startswith("/") else data
    parts = [f"{facts['network']} on {name}", f"{len(record.classes):,} classes"]
    parts.append(f"{facts['train_images']:,} training images")
    parts.append(f"{facts['val_images']:,} validation images")
    if target := facts.get("target"):
        parts.append(f"adapted to {target['name']}, {target['images']:,} images without labels")
    return " · ".join(parts)


def quick_facts(record: Record) -> list[tuple[str, str]]:
    """What one wants to see at a glance, as terms and what they are."""
    found = []
    if record.seconds is not None:
        found.append(("time", duration(record.seconds)))
    total = record.facts.get("total_steps")
    steps = f"{record.steps:,}"
    found.append(("steps", steps if total in (None, record.steps) else f"{steps} of {total:,}"))
    if record.phases:
        found.append(("phases", ", ".join(short(phase["name"], 24) for phase in record.phases[:6])))
    trained, frozen = (record.summary.get(f"{key}_parameters") for key in ("trainable", "frozen"))
    if trained is not None and frozen is not None and trained + frozen:
        share = trained / (trained + frozen)
        found.append(("trained", f"{trained:,} parameters, {percent(share)}"))
    speed = record.summary.get("images_per_second")
    if speed:
        found.append(("throughput", f"{speed:,.0f} images/s"))
    if "processes" in record.facts:
        found.append(("processes", str(record.facts["processes"])))
    return found


def command(record: Record) -> str:
    """The command that gives the run again, in a folder beside it."""
    config = shlex.quote(str(record.run_dir / CONFIG))
    again = shlex.quote(f"run_dir={record.run_dir}-again")
    processes = record.facts.get("processes", 1)
    if processes == 1:
        return f"tl train {config} {again}"
    launcher = f"accelerate launch --num_processes {processes} -m launch.train"
    if record.facts.get("device_kind") == "cpu":
        launcher = (
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_machines 1 "
            f"--num_processes {processes} --mixed_precision no --dynamo_backend no "
            "--main_process_port 0 -m launch.train"
        )
    return f"{launcher} {config} {again}"


def _config(record: Record) -> str:
    text = (record.run_dir / CONFIG).read_text("utf-8", "replace")
    return text if len(text) <= LONGEST_CONFIG else f"{text[:LONGEST_CONFIG]}\n… (cut)"
