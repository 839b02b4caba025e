"""From a file, the environment and the command line to a checked config.

Later layers go before earlier ones: defaults, file, environment (``TL_OPTIMIZER__LR=0.1``),
command line (``optimizer.lr=0.1``). For every value the place it came from is kept, for
``--print-config`` and for errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tl import yaml12
from tl.config import Config, Phase, Training
from tl.errors import UserError, did_you_mean
from tl.phases import expand
from tl.yaml12 import KeyPath

Tree = dict[str, Any]
Origins = dict[KeyPath, str]
ENVIRONMENT_PREFIX = "TL_"


@dataclass(frozen=True)
class Loaded:
    """A checked run, and how it came about."""

    config: Config
    """Every key; `config.phases` are the phases if they were spelled out, None with a strategy."""
    phases: tuple[Phase, ...]
    """The phases that will run, with every key filled in."""
    tree: Tree
    """What the layers gave, without defaults."""
    origins: Origins
    """Where each value of `tree` came from: ``file:line``, a variable or an argument."""

    def to_yaml(self) -> str:
        """The resolved config; loading it again gives the same run."""
        dumped = self.config.model_dump(exclude={"phases"})
        # Phases keep to what differs, so that an override of a top-level key still reaches them.
        dumped["phases"] = self.tree.get("phases")
        return yaml12.dump(dumped)


def load(
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Read, merge and check all layers.

    Args:
        file: a YAML file, or None.
        overrides: ``key.path=value`` arguments; values are YAML.
        environ: the environment; ``os.environ`` by default.

    Raises:
        UserError: all mistakes at once, each with the place it came from.
    """
    tree: Tree = {}
    origins: Origins = {}
    for_expanded: list[tuple[KeyPath, Any, str]] = []
    environ = os.environ if environ is None else environ

    if file is not None:
        _merge_file(tree, origins, Path(file))
    for path, value, origin in [*_from_environment(environ), *_from_arguments(overrides)]:
        if path[0] == "phases" and len(path) > 1 and not tree.get("phases"):
            for_expanded.append((path, value, origin))
        else:
            _assign(tree, origins, path, value, origin)

    config = _validate({k: v for k, v in tree.items() if k != "phases" or v is None}, origins, tree)
    if tree.get("phases") is None:
        assert config.strategy is not None
        try:
            partial = expand(config.strategy, config)
        except UserError as error:
            raise UserError(f"{error} ({origins.get(('strategy',), 'default')})") from None
        if for_expanded:
            # An override of one phase spells the strategy out.
            holder: Tree = {"phases": partial}
            for path, value, origin in for_expanded:
                _assign(holder, origins, path, value, origin)
            tree["strategy"], tree["phases"] = None, holder["phases"]
            origins["strategy",] = origins["phases",] = for_expanded[0][2]
            partial = holder["phases"]
            config = config.model_copy(update={"strategy": None})
    else:
        partial = tree["phases"]
    phases = _phases(partial, tree, origins)
    if config.strategy is None:
        config = config.model_copy(update={"phases": list(phases)})
    return Loaded(config, phases, tree, origins)


def _phases(partial: Any, tree: Tree, origins: Origins) -> tuple[Phase, ...]:
    """Each phase on top of the top-level training keys."""
    place = origins.get(("phases",), "phases")
    if not isinstance(partial, list) or not partial:
        raise UserError(f"phases must be a list of at least one phase ({place})")
    shared = {key: tree[key] for key in Training.model_fields if key in tree}
    phases, mistakes = [], []
    for i, own in enumerate(partial):
        if not isinstance(own, dict):
            raise UserError(f"phases.{i} must hold keys such as name and train ({place})")
        merged = _merged(shared, own)
        if "epochs" in own and "steps" not in own:
            merged.pop("steps", None)  # the duration that stands nearer counts
        merged.setdefault("name", f"phase{i + 1}")
        try:
            phases.append(Phase.model_validate(merged))
        except ValidationError as error:
            mistakes.append(str(_explain(error, Phase, origins, ("phases", i))))
    if mistakes:
        raise UserError("\n".join(mistakes))
    names = [phase.name for phase in phases]
    if len(set(names)) < len(names):
        raise UserError(f"two phases have one name: {', '.join(names)} ({place})")
    return tuple(phases)


def _merged(base: Tree, top: Tree) -> Tree:
    result = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


# ------------------------------------------------------------------------------------- layers


def _merge_file(tree: Tree, origins: Origins, file: Path) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        near = did_you_mean(file.name, [p.name for p in _siblings(file)])
        raise UserError(f"cannot read the config {file}: {error.strerror}.{near}") from None
    except UnicodeDecodeError:
        raise UserError(f"the config {file} is not a text file in UTF-8") from None
    value, places = yaml12.load(text, str(file))
    if value is None:
        return
    if not isinstance(value, dict):
        raise UserError(f"{file}: a config must be keys with values, such as `seed: 0`")
    if value.get("strategy") is not None and value.get("phases") is not None:
        raise UserError(f"{places['phases',]}: give either strategy or phases, not both")
    if value.get("phases") is not None:
        value["strategy"] = None
        places["strategy",] = places["phases",]
    tree.update(value)
    origins.update(places)


def _siblings(file: Path) -> list[Path]:
    try:
        return list(file.parent.iterdir())
    except OSError:
        return []


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[KeyPath, Any, str]]:
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX):
            origin = f"environment: {name}"
            dotted = name[len(ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
            yield _key_path(dotted, origin), yaml12.load(environ[name], origin)[0], origin


def _from_arguments(arguments: Sequence[str]) -> Iterator[tuple[KeyPath, Any, str]]:
    for argument in arguments:
        key, equals, text = argument.partition("=")
        origin = f"command line: {argument}"
        if not equals:
            raise UserError(f"{argument!r} is not key.path=value")
        yield _key_path(key, origin), yaml12.load(text, origin)[0], origin


def _key_path(dotted: str, origin: str) -> KeyPath:
    if not re.fullmatch(r"[^\W\d]\w*(\.\w+)*", dotted):
        raise UserError(f"{dotted!r} is not a key such as optimizer.lr ({origin})")
    return tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))


def _assign(tree: Tree, origins: Origins, path: KeyPath, value: Any, origin: str) -> None:
    """Set one value, making the groups above it; a mapping is merged into the one that is there."""
    node: Any = tree
    for depth, part in enumerate(path[:-1]):
        if isinstance(node, list):
            node = node[_index(node, part, path[:depth], origin)]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            here = path[: depth + 1]
            place = _origin(here, (), origins)
            raise UserError(
                f"{dotted(here)} is {node!r} ({place}), and no group of keys ({origin})"
            )
    last: Any = path[-1]
    if isinstance(node, list):
        last = _index(node, last, path[:-1], origin)
        current = node[last]
    else:
        current = node.get(last)
    both = isinstance(value, dict) and isinstance(current, dict)
    node[last] = _merged(current, value) if both else value
    _stamp(origins, path, value, origin)
    # The later of the two ways to say what a run is takes the place of the earlier.
    if path == ("strategy",) and value is not None:
        tree.pop("phases", None)
        _forget(origins, ("phases",))
    if path == ("phases",) and value is not None:
        tree["strategy"] = None
        origins["strategy",] = origin


def _stamp(origins: Origins, path: KeyPath, value: Any, origin: str) -> None:
    """Note that all of ``value`` came from ``origin``; other keys of a group keep theirs."""
    if not isinstance(value, dict):
        _forget(origins, path)
    origins[path] = origin
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _stamp(origins, (*path, key), item, origin)


def _forget(origins: Origins, path: KeyPath) -> None:
    for below in [other for other in origins if other[: len(path)] == path]:
        del origins[below]


def _index(items: list[Any], part: str | int, path: KeyPath, origin: str) -> int:
    if isinstance(part, int) and part < len(items):
        return part
    raise UserError(
        f"{dotted(path)} has {len(items)} items, counted from 0; there is no {part} ({origin})"
    )


# ------------------------------------------------------------------------------------- errors


def _validate(values: Tree, origins: Origins, tree: Tree) -> Config:
    if tree.get("phases") is not None:
        # The phases are checked one by one, on top of the shared keys; here a stand-in will do.
        values = {**values, "phases": [Phase(name="stand-in", train="full")]}
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explain(error, Config, origins, ()) from None
    return config.model_copy(update={"phases": None})


def _explain(
    error: ValidationError, model: type[BaseModel], origins: Origins, prefix: KeyPath
) -> UserError:
    lines = []
    for problem in error.errors():
        path = (*prefix, *problem["loc"])
        origin = _origin(path, prefix, origins)
        key = dotted(path)
        if problem["type"] == "extra_forbidden":
            # Without its value: a mistyped key may hold a secret.
            if origin.startswith("command line: "):
                origin = origin.partition("=")[0]
            text = f"unknown key {key!r}.{_nearest_key(problem['loc'], model)}"
        elif problem["type"] == "missing":
            text = f"{key} is missing"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            text = f"{key} is a group of keys, not {problem['input']!r}: {key}.KEY=VALUE"
        else:
            message = problem["msg"].replace("Input should be", "must be")
            message = message.replace("Value error, ", "")
            given = "" if isinstance(problem["input"], dict) else f", not {problem['input']!r}"
            near = ""
            if problem["type"] == "literal_error":
                near = did_you_mean(problem["input"], re.findall(r"'(.*?)'", message))
            text = f"{key}: {message}{given}.{near}" if key else message
        lines.append(f"{text} ({origin})" if origin else text)
    return UserError("\n".join(lines))


def _origin(path: KeyPath, prefix: KeyPath, origins: Origins) -> str:
    """Where the value came from: its own place, a shared key's, that of what is below or around."""
    candidates = [path, path[len(prefix) :]]
    candidates += [below for below in origins if path and below[: len(path)] == path]
    candidates += [path[:n] for n in range(len(path) - 1, 0, -1)]
    return next((origins[c] for c in candidates if c in origins), "")


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
