"""The examination: each process looks at what is its own, and the main one prints it all, once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import NamedTuple

from rich.text import Text

from tl.arguments import Loaded
from tl.engine import run_dir, runtime
from tl.engine.doctor import images, machine, network, storage, together
from tl.engine.doctor.findings import Finding, Kind, ok, problem
from tl.engine.doctor.weights import weights
from tl.engine.runtime import Runtime
from tl.errors import printable
from tl.tracking.console import ConsoleTracker, open_console

_STYLES: dict[Kind, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}
_SIDE = 224
"""pixels, where the config leaves the images' size to the network"""


class Report(NamedTuple):
    """What a process found out about itself and, on the first of each node, about the node."""

    host: str
    versions: dict[str, str]
    gpus: list[str]
    findings: list[Finding]


def examine(
    loaded: Loaded, *, with_config: bool, most_images: int = 1000, seconds: float = 60.0
) -> int:
    """Look at everything, print it, and return the number of problems, on every process.

    Args:
        with_config: look at the data and the weights of the config, too.
        most_images: to decode.
        seconds: that the processes may take to join, and to sum.

    Raises:
        UserError: the run would not get the processes or precision that were asked for.
        LostPeer: the processes cannot join.
    """
    here = together.join(loaded.config, seconds)
    with open_console(None if here.is_main else run_dir.nowhere()) as console:
        console.say(f"tl doctor: {here.describe()}")
        reports = here.from_all([_report(loaded, here)])
        found = _by_node(reports, console)
        console.say("\nall processes")
        shared = [together.collective(here, seconds)]
        shared += together.compare([(each.host, each.versions, each.gpus) for each in reports])
        if here.is_main:  # as in a run, it alone talks to W&B
            shared.append(_checked("W&B", lambda: network.wandb(loaded.config, os.environ))[0])
        found += _shown(here.from_main(shared), console)
        if with_config:
            console.say("\nconfig")
            found += _shown(_of_config(loaded, most_images, here), console)
        problems = sum(each.kind == "problem" for each in found)
        notes = sum(each.kind == "note" for each in found)
        console.say(
            f"\n{problems or 'no'} problem{'' if problems == 1 else 's'}, "
            f"{notes or 'no'} note{'' if notes == 1 else 's'}"
        )
    here.wait()
    runtime.stop()
    return problems


def _report(loaded: Loaded, here: Runtime) -> Report:
    config, versions = loaded.config, machine.versions()
    found: list[Finding] = []
    if here.accelerator.is_local_main_process:
        for what, check in (
            ("versions", lambda: [machine.describe_versions(versions)]),
            ("GPUs", lambda: machine.gpus(here)),
            ("cores", lambda: machine.cores(here, config, os.environ)),
            ("memory", lambda: machine.memory(here, _batch_bytes(loaded, here), config)),
            ("folders", lambda: storage.folders(config)),
            ("port", lambda: [network.port(here)]),
        ):
            found += _checked(what, check)
    found += _checked("precision", lambda: machine.computes(here, config))
    return Report(socket.gethostname(), versions, machine.gpu_names(), found)


def _batch_bytes(loaded: Loaded, here: Runtime) -> int:
    """Of a process's batch of 8-bit images."""
    largest = max((phase.global_batch_size for phase in loaded.phases), default=0)
    side = loaded.config.data.image_size or _SIDE
    return -(-(largest or loaded.config.global_batch_size) // here.world_size) * 3 * side * side


def _of_config(loaded: Loaded, most_images: int, here: Runtime) -> list[Finding]:
    """What is to be said of the config's data and weights, the same on every process."""
    phases = ", ".join(phase.name for phase in loaded.phases) or "to be found by the strategy"
    found = [ok("config", f"valid; phases: {phases}")]
    scanned, source = images.scan(loaded, here)
    found += scanned
    if source is not None:
        found += images.decode(loaded, source, most_images, here)
    # Each node may have a cache of its own.
    is_first = here.accelerator.is_local_main_process
    mine = _checked("weights", lambda: weights(loaded, source)) if is_first else []
    said = here.from_all([(socket.gethostname(), each) for each in mine])
    hosts = dict.fromkeys(host for host, _ in said)
    for each in dict.fromkeys(finding for _, finding in said):
        where = [host for host, finding in said if finding == each]
        on = "" if len(set(where)) == len(hosts) else f"on {', '.join(where)}: "
        found.append(each._replace(text=on + each.text))
    return found


def _checked(what: str, check: Callable[[], list[Finding] | Finding]) -> list[Finding]:
    """What a check finds; one that fails is a finding, so that the others are still made."""
    try:
        found = check()
    except Exception as error:
        text = f"cannot be looked at: {type(error).__name__}: {error}"
        return [problem(what, text, "that is a mistake in tl doctor: report it, with this line")]
    return [found] if isinstance(found, Finding) else found


def _by_node(reports: list[Report], console: ConsoleTracker) -> list[Finding]:
    """Show what each node's processes found: what all of them say, once."""
    everything = []
    for host in dict.fromkeys(report.host for report in reports):
        ranks = [rank for rank, report in enumerate(reports) if report.host == host]
        listed = f", rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        console.say(f"\nnode {printable(host)}{listed if len(reports) > 1 else ''}")
        found: dict[Finding, list[int]] = {}
        for rank in ranks:
            for finding in reports[rank].findings:
                found.setdefault(finding, []).append(rank)
        differ = sum(finding.what == "precision" for finding in found) > 1
        for finding, where in found.items():
            if differ and finding.what == "precision":  # all else, one process of a node says
                finding = finding._replace(
                    text=f"rank {', '.join(map(str, where))}: {finding.text}"
                )
            everything.append(finding)
        _shown(everything[-len(found) :], console)
    return everything


def _shown(findings: list[Finding], console: ConsoleTracker) -> list[Finding]:
    """Print them, a line each and one for what to do."""
    for kind, what, text, mend in findings:
        # A message of several lines stays in its column.
        lines = [printable(line) for line in text.splitlines()] or [""]
        line = Text("  ").append(f"{kind:8}", _STYLES[kind]).append(f"{what:11}{lines[0]}")
        for more in lines[1:]:
            line.append(f"\n{'':21}{more}")
        if mend:
            line.append(f"\n{'':21}→ {printable(mend)}", "dim")
        console.show(line, wrap=False)
    return findings
