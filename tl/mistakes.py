"""What is wrong with a config, in words, each mistake with the place it came from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tl.errors import UserError, brief, did_you_mean
from tl.yaml12 import KeyPath

Origins = dict[KeyPath, str]
"""Where the values came from: ``file:line``, a variable or an argument."""
LAYERS = ("environment: ", "command line: ")
"""How an origin begins that is in no file, in the order of the layers."""
MOST_MISTAKES = 20
"""Mistakes that are said at once. To find where one came from takes a look at every value."""


def explain(
    error: ValidationError, model: type[BaseModel], origins: Origins, prefix: KeyPath
) -> UserError:
    """What pydantic found in ``model``, which lies at ``prefix`` in the config, a line for each."""
    lines = []
    for problem in error.errors(include_url=False)[:MOST_MISTAKES]:
        path = (*prefix, *problem["loc"])
        origin = origin_of(path, prefix, origins)
        key = dotted(path)
        if problem["type"] == "extra_forbidden":
            # Without its value: a mistyped key may hold a secret.
            if origin.startswith("command line: "):
                origin = origin.partition("=")[0]
            text = f"unknown key {brief(key)}.{_nearest_key(problem['loc'], model)}"
        elif problem["type"] == "missing":
            text = f"{key} is missing"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            text = f"{key} is a group of keys, not {brief(problem['input'])}: {key}.KEY=VALUE"
        else:
            message = problem["msg"].replace("Input should be", "must be")
            message = message.replace("Value error, ", "")
            if problem["type"] in ("too_short", "too_long"):
                number = problem["ctx"].get("min_length") or problem["ctx"]["max_length"]
                bound = "at least" if problem["type"] == "too_short" else "at most"
                message = f"must be a list of {bound} {number}"
            given = "" if isinstance(problem["input"], dict) else f", not {brief(problem['input'])}"
            near = ""
            if problem["type"] == "literal_error":
                near = did_you_mean(problem["input"], re.findall(r"'(.*?)'", message))
            text = f"{key}: {message}{given}.{near}" if key else message
        lines.append(f"{text} ({origin})" if origin else text)
    if error.error_count() > len(lines):
        lines.append(f"and {error.error_count() - len(lines)} mistakes more")
    return UserError("\n".join(lines))


@contextlib.contextmanager
def blamed_on(origins: Origins, *path: str | int) -> Iterator[None]:
    """Say of a user's error in the block where the value at ``path`` came from.

    Of a group's it is the first key of that group which the message names, if it names one.
    """
    try:
        yield
    except UserError as error:
        prefix = path[:2] if path[0] == "phases" else ()
        if len(path) == 1:
            named = re.search(rf"\b{path[0]}\.(\w+)", str(error))
            if named is None:
                raise
            path = (*path, named[1])
        # What phases a strategy stands for has no place of its own.
        place = origin_of(path, prefix, origins) or (prefix and origins.get(("strategy",)))
        raise type(error)(f"{error} ({place or f'{dotted(path)}, by default'})") from error


def origin_of(path: KeyPath, prefix: KeyPath, origins: Origins) -> str:
    """Where the value came from: its own place, a shared key's, that of what is below or around."""
    candidates = [path, path[len(prefix) :]]
    candidates += [below for below in origins if path and below[: len(path)] == path]
    candidates += [path[:n] for n in range(len(path) - 1, 0, -1)]
    return next((origins[c] for c in candidates if c in origins), "")


def keep_later_duration(keys: dict[str, Any], prefix: KeyPath, origins: Origins) -> None:
    """Take out of ``keys``, which lie at ``prefix``, the earlier of `epochs` and `steps`.

    Raises:
        UserError: both are from the same layer, where none is the later.
    """
    given = [key for key in ("epochs", "steps") if keys.get(key) is not None]
    if len(given) < 2:
        return
    places = [origins.get((*prefix, key), "") for key in given]
    layers = [_layer(place) for place in places]
    if layers[0] == layers[1] and all(places):
        names = " and ".join(dotted((*prefix, key)) for key in given)
        where = ", ".join(dict.fromkeys(places))
        raise UserError(f"{names} are two durations of the same phase: give one ({where})")
    earlier = given[layers.index(min(layers))]
    del keys[earlier]
    origins.pop((*prefix, earlier), None)


def _layer(origin: str) -> int:
    """The number of the layer that a value came from, the later the higher."""
    return next((n for n, start in enumerate(LAYERS) if origin.startswith(start)), -1)


def _nearest_key(loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    keys = [dotted(path) for path, _ in leaves(model)]
    same_leaf = [key for key in keys if key.split(".")[-1] == loc[-1]]
    if len(same_leaf) == 1:
        return f" Did you mean {same_leaf[0]!r}?"
    return did_you_mean(dotted(loc), keys)


def leaves(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of a config with its pydantic field, groups opened."""
    for name, field in model.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            yield from leaves(group, (*prefix, name))
        else:
            yield (*prefix, name), field


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))
