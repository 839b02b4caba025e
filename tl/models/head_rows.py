"""A head that starts from rows of the pretrained one: for classes that the weights know already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torchvision.models import ResNet18_Weights

from tl.errors import UserError, brief, did_you_mean, printable, unknown
from tl.models.load_report import listed


@dataclass(frozen=True)
class HeadClasses:
    """The task's classes, and for some of them what the weights call them: a name, or a row."""

    classes: Sequence[str]
    called: Mapping[str, str | int]


def imagenet_classes() -> list[str]:
    """The names of ImageNet's 1000 classes as torchvision has them, in the order of the rows."""
    return list(ResNet18_Weights.DEFAULT.meta["categories"])


def rows_of(wanted: HeadClasses, known: Sequence[str] | None, count: int) -> list[int | None]:
    """The row of each class in a head of ``count`` rows; None for a class that has none.

    ``known`` are the names of the rows, where there are any. A name that is none of them as it
    stands is compared without regard to case, underscores and hyphens.

    Raises UserError: ``called`` has a class that the task has not, or a name or a row that the
    weights have not; a name stands for two rows; no class has a row, or two have the same.
    """
    for name in wanted.called:
        if name not in wanted.classes:
            raise unknown("class of the data", name, wanted.classes, "model.head_classes")
    exact: dict[str, list[int]] = {}
    alike: dict[str, list[int]] = {}
    for row, name in enumerate(known or ()):
        exact.setdefault(name, []).append(row)
        alike.setdefault(_plain(name), []).append(row)
    rows: list[int | None] = []
    for name in wanted.classes:
        called = wanted.called.get(name, name)
        if isinstance(called, int):
            if not 0 <= called < count:
                raise UserError(
                    f"model.head_classes: {brief(name)} is to be row {called}, and the weights "
                    f"have the rows 0 to {count - 1}."
                )
            rows.append(called)
            continue
        # As it stands first: ImageNet has a Cardigan, which is a dog, and a cardigan.
        found = exact.get(called) or alike.get(_plain(called), [])
        if len(found) > 1:
            numbers = " or ".join(map(str, found))
            raise UserError(
                f"{brief(called)} is the name of {len(found)} classes of the weights: give the "
                f"number of one, as model.head_classes={{{printable(name)}: {found[0]}}} "
                f"(of {numbers})."
            )
        if not found and name in wanted.called:
            raise unknown("class of the weights", str(called), known or (), "model.head_classes")
        rows.append(found[0] if found else None)
    taken = [row for row in rows if row is not None]
    if not taken:
        near = "".join(did_you_mean(name, known or ()) for name in wanted.classes[:5])
        names = "" if known else " They are weights of unknown classes: give numbers of rows."
        raise UserError(
            f"none of the classes {listed(wanted.classes)} is one of the weights' own.{names} Give "
            f"model.head=new, or say what the weights call them, as "
            f"model.head_classes={{{printable(wanted.classes[0])}: NAME}}.{near}"
        )
    if len(set(taken)) < len(taken):
        twice = [n for n, row in zip(wanted.classes, rows, strict=True) if taken.count(row) > 1]  # type: ignore[arg-type]
        raise UserError(f"{listed(twice)} would start as one and the same class of the weights.")
    return rows


def with_rows(fresh: Tensor, pretrained: Tensor, rows: Sequence[int | None]) -> Tensor:
    """A copy of ``fresh`` (classes, …) in which a class that has a row is that row's."""
    result = fresh.detach().clone()
    for i, row in enumerate(rows):
        if row is not None:
            result[i] = pretrained[row].to(result)
    return result


def describe(
    wanted: HeadClasses, known: Sequence[str] | None, rows: Sequence[int | None]
) -> list[str]:
    """For people: which classes start from which rows, and which start new."""
    pairs = list(zip(wanted.classes, rows, strict=True))
    taken = [
        f"{name} from {row}{f' {known[row]!r}' if known else ''}"
        for name, row in pairs
        if row is not None
    ]
    notes = [f"head: {len(taken)} of {len(rows)} classes start from rows: {listed(taken)}"]
    new = [f"{name}{did_you_mean(name, known or ())}" for name, row in pairs if row is None]
    return notes + ([f"head: without a row, new: {listed(new)}"] if new else [])


def _plain(name: str | int) -> str:
    return " ".join(str(name).casefold().replace("_", " ").replace("-", " ").split())
