"""Going on from a checkpoint: after an interruption, or back to it from a step that went wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from tl import arguments
from tl.arguments import Loaded
from tl.engine import checkpoint, run_dir
from tl.engine.agreement import Agreement
from tl.engine.nonfinite import Policy, RollBack
from tl.engine.resume_rules import changes, refuse_fatal
from tl.engine.runtime import Runtime
from tl.engine.saving import finish_writing
from tl.engine.state import Progress, Run
from tl.errors import UserError, brief
from tl.models.network import Network


def find_checkpoint(
    folder: Path, loaded: Loaded, say: Callable[[str], None]
) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, if there is one, and what of the config has changed.

    Raises:
        UserError: a change that cannot be.
    """
    found = checkpoint.newest(folder / "checkpoints", say)
    if not (folder / run_dir.CONFIG).exists():
        return found, []
    phase = _progress(found, checkpoint.read_state(found)).phase if found is not None else 0
    before = arguments.load(folder / run_dir.CONFIG, environ={})
    changed = changes(before, loaded, phase)
    refuse_fatal(changed, folder)
    for change in changed:
        say(f"{'changed' if change.rule == 'free' else 'CHANGED'}: {change}")
    return found, [str(change) for change in changed if change.rule != "free"]


def restore(found: Path, network: Network, here: Runtime) -> tuple[Progress, dict[str, Tensor]]:
    """Load a checkpoint into the network; returns how far it had come, and all its tensors.

    Raises:
        UserError: it does not verify, is of another network, or is not what a run writes.
    """
    state, tensors = checkpoint.read(found)
    progress = _progress(found, state)
    try:
        network.model.load_state_dict(checkpoint.part("network", tensors))
    except RuntimeError as error:
        raise UserError(f"{found} is of another network: {' '.join(str(error).split())}") from None
    if here.accelerator.scaler is not None and state["scaler"] is not None:
        here.accelerator.scaler.load_state_dict(state["scaler"])
    return progress, tensors


def _progress(found: Path, state: dict[str, Any]) -> Progress:
    return Progress.of(state, str(found / checkpoint.STATE))


def check_same_images(progress: Progress, images: str) -> None:
    """Raise UserError if the data is not what the run began with: its order would be another."""
    if progress.data != images:
        raise UserError(
            "the run cannot go on: its images, or their classes, are not those it began with. "
            "Put the data back as it was, or start a new run with another run_dir."
        )


def check_length(this: Run) -> None:
    """Raise UserError if the phase that goes on has more steps behind it than it now has in all."""
    if this.progress.phase > len(this.phases):
        phases = brief(this.progress.phase)
        raise UserError(f"the checkpoint is after {phases} phases, and the run has fewer")
    if this.is_over:
        return
    phase, done = this.phases[this.progress.phase], this.progress.phase_step
    if done > this.steps_of(phase):
        raise UserError(
            f"phase {phase.name} has {this.steps_of(phase)} steps now, and {done} are done: give "
            "it more epochs or steps, or start a new run with another run_dir"
        )


def roll_back(this: Run, bad: RollBack) -> tuple[dict[str, Tensor], bool]:
    """Return to the newest checkpoint, and leave out the steps from there to the bad one.

    Randomness is a function of the step, so the same steps would give the same again. Returns the
    checkpoint's tensors, and whether it is one within the phase.
    """
    here, progress = this.runtime, this.progress
    began = progress.step - progress.phase_step
    finish_writing(this)
    checkpoints = this.run_dir / "checkpoints"
    found = here.on_main(lambda: checkpoint.newest(checkpoints, this.console.say))
    assert found is not None, "one is written before the first step"
    before, tensors = here.on_all(lambda: restore(found, this.network, here))
    if before.phase != progress.phase:
        raise FloatingPointError(f"{bad}, and there is no checkpoint of this phase to go back to")
    left_out = [*progress.left_out, [before.step + 1, bad.step]]
    bad_images = progress.bad_images
    vars(progress).update(vars(before), left_out=left_out, bad_images=bad_images, step=bad.step)
    this.console.say(
        f"{bad}: going back to step {before.step}; steps {before.step + 1} to {bad.step} are left "
        f"out ({len(left_out)} of {Policy.of(this.config.nonfinite).times})"
    )
    within_phase = progress.phase_step > 0
    progress.phase_step = bad.step - began
    progress.evaluation_due = this.evaluates_after(progress.phase_step)
    this.agreement = Agreement(here)
    this.agreement.save = True  # that it went back must not be forgotten
    return tensors, within_phase
