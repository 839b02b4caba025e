"""Objectives by name. A new one is a class in a file of its own and one line here."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError, create_model

from tl.config import Keys, Phase
from tl.errors import UserError, unknown
from tl.mistakes import Origins, explain
from tl.models.network import Network
from tl.objectives.adabn import AdaBN
from tl.objectives.afn import AFN
from tl.objectives.bsp import BSP
from tl.objectives.bss import BSS
from tl.objectives.cdan import CDAN
from tl.objectives.cdan_mcc import CDANMCC
from tl.objectives.co_tuning import CoTuning
from tl.objectives.coral import Coral
from tl.objectives.dan import DAN
from tl.objectives.dann import DANN
from tl.objectives.delta import Delta
from tl.objectives.fixmatch import FixMatch
from tl.objectives.jan import JAN
from tl.objectives.l2_sp import L2SP
from tl.objectives.lwf import LwF
from tl.objectives.mcc import MCC
from tl.objectives.mdd import MDD
from tl.objectives.objective import Given, Objective
from tl.objectives.shot import SHOT
from tl.objectives.supervised import Supervised
from tl.phases import load_object

__all__ = [
    "OBJECTIVES",
    "Given",
    "Objective",
    "check_options",
    "make_objective",
    "objective_class",
    "why_images",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised,
    "l2_sp": L2SP,
    "delta": Delta,
    "bss": BSS,
    "co_tuning": CoTuning,
    "lwf": LwF,
    "dann": DANN,
    "cdan": CDAN,
    "mdd": MDD,
    "bsp": BSP,
    "coral": Coral,
    "dan": DAN,
    "jan": JAN,
    "mcc": MCC,
    "cdan_mcc": CDANMCC,
    "afn": AFN,
    "adabn": AdaBN,
    "fixmatch": FixMatch,
    "shot": SHOT,
}


def objective_class(name: str) -> type[Objective]:
    """The class for a phase's ``objective``, from the table or as ``package.module:name``.

    Raises:
        UserError: no such name, or what it names is no Objective.
    """
    if ":" in name:
        found = load_object(name, "objective")
        if not (isinstance(found, type) and issubclass(found, Objective)):
            raise UserError(f"objective {name!r} is not a subclass of tl.objectives.Objective")
        return found
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def make_objective(network: Network, phase: Phase, given: Given) -> Objective:
    """The objective of a phase that `freeze` has set up.

    Raises:
        UserError: an option names what the network does not have.
    """
    return objective_class(phase.objective)(network, phase, given)


def check_options(phase: Phase, index: int, origins: Origins) -> None:
    """Check the ``objective_options`` of phase ``index``, which has an objective that there is.

    Raises:
        UserError: every unknown key, with the nearest, and every wrong value, with their places.
    """
    options: Any = objective_class(phase.objective).Options
    # As a group within a phase, so that places and names of keys are those of the config.
    holder = create_model("Options", __base__=Keys, objective_options=(options, ...))
    try:
        holder.model_validate({"objective_options": phase.objective_options})
    except ValidationError as error:
        raise UserError(
            f"objective {phase.objective}: {explain(error, holder, origins, ('phases', index))}"
        ) from None


def why_images(phase: Phase) -> str:
    """Why a phase cannot train on cached features in place of images; empty if it can."""
    for key in ("mixup", "cutmix"):
        if getattr(phase, key):
            return f"{key} mixes images, not features"
    if "images" in objective_class(phase.objective).needs:
        return f"objective={phase.objective} sends images through the pretrained network as well"
    return ""
