"""Types of values that keys share, and what is said of one that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
)

from tl.errors import did_you_mean

# What a C library takes for a whole number.
LARGEST_INT = 2**63 - 1
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_INT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


def length(n: int) -> Any:
    return Field(min_length=n, max_length=n)


def _class_name(value: Any, check: Callable[[Any], str | int]) -> str | int:
    try:
        return check(value)
    except ValidationError:  # of a union: one error for each member, at a place that is no key
        raise ValueError("must be a name or a whole number") from None


def _colour(value: Any, check: Callable[[Any], list[int]]) -> list[int]:
    try:
        return check(value)
    except ValidationError:  # of the list, or of one of its numbers
        raise ValueError("must be three numbers from 0 to 255, as [255, 255, 255]") from None


ClassName = Annotated[str | int, WrapValidator(_class_name)]
Colour = Annotated[list[Byte], length(3), WrapValidator(_colour)]


def _channels(value: Any) -> Any:
    if value not in (1, 3) or type(value) is not int:  # true is 1 to Python
        raise ValueError("must be 1 or 3")
    return value


Channels = Annotated[Literal[1, 3], BeforeValidator(_channels)]


def _from_to(scale: list[float]) -> list[float]:
    if scale[0] > scale[1]:
        raise ValueError("must go from the smaller to the larger")
    return scale


Shares = Annotated[list[ProperFraction], length(2), AfterValidator(_from_to)]


UNITS = r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?"
CLOCK = r"(?:([0-9]+)-)?([0-9]+):([0-9]{2}):([0-9]{2})"
BETA = r"0(?:\.[0-9]{1,15})?"
POLICY = r"stop|(skip|rollback)\([1-9][0-9]*\)"
SAMPLING = r"uniform|balanced|domains|weighted\((?:0?\.[0-9]{1,9}|0|1|[01]\.0{0,9})\)"


def _pattern(*alternatives: str) -> Any:
    """For editors; the validator beside it says more."""
    return Field(json_schema_extra={"pattern": f"^({'|'.join(alternatives)})$"})


def seconds_of(duration: str) -> float:
    """Seconds in ``"90s"``, ``"1h30m"``, or a time as Slurm writes it: ``"1-12:00:00"``.

    Raises:
        ValueError: it is none of these, or no time at all.
    """
    duration = duration if isinstance(duration, str) else ""  # of YAML, where 90 is a number
    found = re.fullmatch(UNITS, duration) or re.fullmatch(CLOCK, duration)
    days, hours, minutes, seconds = (int(n or 0) for n in found.groups()) if found else (0,) * 4
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError("must be a time such as 90s, 1h30m or 1-12:00:00")
    return float(total)


def _duration(text: str) -> str:
    seconds_of(text)
    return text


def _time_limit(text: str) -> str:
    return text if text == "none" else _duration(text)


Duration = Annotated[str, BeforeValidator(_duration), _pattern(UNITS, CLOCK)]
TimeLimit = Annotated[str, BeforeValidator(_time_limit), _pattern(UNITS, CLOCK, "none")]


def _policy(text: str) -> str:
    if not re.fullmatch(POLICY, text):
        raise ValueError("must be stop, skip(n) or rollback(n) with n of 1 or more")
    return text


def _class_weights(text: str) -> str:
    parse_class_weights(text)
    return text


def parse_class_weights(text: str) -> tuple[str, float]:
    """The name and beta of ``none``, ``balanced`` or ``effective(0.999)``; beta is 0 without one.

    Raises:
        ValueError: it is none of these, or beta is not from 0 to below 1.
    """
    name, _, beta = text.removesuffix(")").partition("(")
    if text in ("none", "balanced"):
        return text, 0.0
    if name == "effective" and text.endswith(")") and re.fullmatch(BETA, beta):
        return name, float(beta)
    raise ValueError("must be none, balanced or effective(beta) with beta from 0 to below 1")


ClassWeights = Annotated[
    str, AfterValidator(_class_weights), _pattern("none|balanced", rf"effective\({BETA}\)")
]
NonfinitePolicy = Annotated[str, AfterValidator(_policy), _pattern(POLICY)]


def _sampling(text: str) -> str:
    if not re.fullmatch(SAMPLING, text):
        near = did_you_mean(text, ["uniform", "balanced", "domains", "weighted(0.5)"])
        kinds = "uniform, balanced, domains or weighted(p) with p from 0 to 1"
        raise ValueError(f"must be {kinds}.{near}")
    return text


Sampling = Annotated[str, AfterValidator(_sampling), _pattern(SAMPLING)]


class Keys(BaseModel):
    """A group of keys. Unknown ones are errors; strings are not taken for numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )
