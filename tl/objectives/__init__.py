"""Objectives by name. A new one is a class in a file of its own and one line here."""

from __future__ import annotations

from tl.errors import UserError, unknown
from tl.objectives.objective import Objective
from tl.objectives.supervised import Supervised
from tl.phases import load_object

OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised,
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
