"""From a file, the environment and the command line to a checked config.

Later layers go before earlier ones: defaults, file, environment (``TL_OPTIMIZER__LR=0.1``),
command line (``optimizer.lr=0.1``). For every value the place it came from is kept, for
``--print-config`` and for errors.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from tl import yaml12
from tl.config import Config, Phase, Training
from tl.errors import UserError, brief, did_you_mean
from tl.mistakes import (
    LAYERS,
    MOST_MISTAKES,
    Origins,
    dotted,
    explain,
    keep_later_duration,
    origin_of,
)
from tl.paths import absolute, with_paths
from tl.phases import expand
from tl.strategies import Facts, Later, PartialPhase
from tl.yaml12 import KeyPath

Tree = dict[str, Any]
ENVIRONMENT_PREFIX = "TL_"


@dataclass(frozen=True)
class Loaded:
    """A checked run, and how it came about."""

    config: Config
    """Every key; `config.phases` are the phases if they were spelled out, None with a strategy."""
    phases: tuple[Phase, ...]
    """The phases that will run, with every key filled in; none yet where there is `later`."""
    own: tuple[Tree, ...]
    """What each of these was given itself, by the layers or by the strategy."""
    tree: Tree
    """What the layers gave, without defaults."""
    origins: Origins
    """Where each value of `tree` came from: ``file:line``, a variable or an argument."""
    later: Later | None = None
    """What makes the phases, where the strategy has to know network and data first; `spell_out`."""
    of_phases: tuple[tuple[KeyPath, Any, str], ...] = ()
    """Values for keys of those phases: path, value and origin."""
    decided: Tree = field(default_factory=dict)
    """Of such a strategy: its name, why it has these phases, and what was measured for that."""

    def values(self) -> Tree:
        """Every key but the phases, as a config may give them: steps or epochs, not both."""
        without = {"phases"} if self.config.steps is None else {"phases", "epochs"}
        return self.config.model_dump(exclude=without)

    def to_yaml(self) -> str:
        """The resolved config; loading it again, in any folder, gives the same run."""
        dumped = self.values()
        if self.config.run_dir:
            dumped["run_dir"] = absolute(self.config.run_dir, "run_dir")
        # Phases keep to what differs, so that an override of a top-level key still reaches them.
        dumped["phases"] = self.tree.get("phases")
        return yaml12.dump(dumped)


def load(
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    run_dir: Path | None = None,
) -> Loaded:
    """Read, merge and check all layers.

    Args:
        file: a YAML file, or None.
        overrides: ``key.path=value`` arguments; values are YAML.
        environ: the environment; ``os.environ`` by default.
        run_dir: where the run is now, in place of where the file says that it is.

    Raises:
        UserError: all mistakes at once, each with the place it came from.
    """
    tree: Tree = {}
    origins: Origins = {}
    for_expanded: list[tuple[KeyPath, Any, str]] = []
    environ = os.environ if environ is None else environ

    if file is not None:
        _merge_file(tree, origins, Path(file))
    if run_dir is not None:
        tree["run_dir"], origins["run_dir",] = str(run_dir), "the folder of the run that goes on"
    for path, value, origin in [*_from_environment(environ), *_from_arguments(overrides)]:
        if path[0] == "phases" and len(path) > 1 and not tree.get("phases"):
            for_expanded.append((path, value, origin))
        else:
            _assign(tree, origins, path, value, origin)

    keep_later_duration(tree, (), origins)
    config = _validate({k: v for k, v in tree.items() if k != "phases" or v is None}, origins, tree)
    if tree.get("phases") is None:
        assert config.strategy is not None
        try:
            partial = expand(config.strategy, config)
        except UserError as error:
            raise UserError(f"{error} ({origins.get(('strategy',), 'default')})") from None
        if callable(partial):
            of_phases = tuple(for_expanded)
            return Loaded(with_paths(config), (), (), tree, origins, partial, of_phases)
        if for_expanded:  # an override of one phase spells the strategy out
            return _spelled_out(config, partial, for_expanded, tree, origins, for_expanded[0][2])
        phases = _phases(partial, tree, origins)
        return Loaded(with_paths(config), phases, tuple(partial), tree, origins)
    return _with_phases(config, tree, origins)


def spell_out(loaded: Loaded, facts: Facts) -> Loaded:
    """The run with the phases that its strategy has for this network and data.

    Raises:
        UserError: it has none, or they are wrong.
    """
    assert loaded.later is not None
    tree, origins = dict(loaded.tree), dict(loaded.origins)
    place = origins.get(("strategy",), "default")
    try:
        spelled = loaded.later(facts)
    except UserError as error:
        raise UserError(f"{error} ({place})") from None
    found = _spelled_out(
        loaded.config, spelled.phases, loaded.of_phases, tree, origins, f"{place}, spelled out"
    )
    decided = {
        "strategy": loaded.config.strategy,
        "why": spelled.why,
        "measured": dict(spelled.measured),
    }
    return replace(found, decided=decided)


def _spelled_out(
    config: Config,
    partial: list[PartialPhase],
    of_phases: Sequence[tuple[KeyPath, Any, str]],
    tree: Tree,
    origins: Origins,
    place: str,
) -> Loaded:
    """The run with ``partial`` in place of its strategy; ``place`` is what spells it out."""
    holder: Tree = {"phases": copy.deepcopy(partial)}
    strategy = f"strategy {config.strategy}, {origins.get(('strategy',), 'default')}"
    for i, phase in enumerate(holder["phases"]):
        _stamp(origins, ("phases", i), phase, strategy)
    for path, value, origin in of_phases:
        _assign(holder, origins, path, value, origin)
    tree["strategy"], tree["phases"] = None, holder["phases"]
    origins["strategy",] = origins["phases",] = place
    return _with_phases(config.model_copy(update={"strategy": None}), tree, origins)


def _with_phases(config: Config, tree: Tree, origins: Origins) -> Loaded:
    """The run of the phases that ``tree`` spells out."""
    partial = tree["phases"]
    phases = _phases(partial, tree, origins)
    config = config.model_copy(update={"phases": list(phases)})
    return Loaded(with_paths(config), phases, tuple(partial), tree, origins)


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
        keep_later_duration(own, ("phases", i), origins)
        merged = _merged(shared, own)
        if merged.get("objective") != shared.get("objective"):  # its options are its own
            merged["objective_options"] = own.get("objective_options", {})
        if own.keys() & {"epochs", "steps"}:  # the duration that stands nearer counts
            merged.pop("epochs" if own.get("steps") is not None else "steps", None)
        merged.setdefault("name", f"phase{i + 1}")
        try:
            phases.append(Phase.model_validate(merged))
        except ValidationError as error:
            mistakes.append(str(explain(error, Phase, origins, ("phases", i))))
            if len(mistakes) == MOST_MISTAKES:
                break
    if mistakes:
        raise UserError("\n".join(mistakes))
    names = [phase.name for phase in phases]
    if len(set(names)) < len(names):
        raise UserError(f"two phases have one name: {', '.join(names[:20])} ({place})")
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
        with file.open(encoding="utf-8") as opened:
            text = opened.read(yaml12.MOST_CHARACTERS + 1)  # it may be no file, and have no end
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
            origin = f"{LAYERS[0]}{name}"
            dotted = name[len(ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
            path = _key_path(dotted, origin)
            yield path, _value(path, environ[name], origin), origin


def _from_arguments(arguments: Sequence[str]) -> Iterator[tuple[KeyPath, Any, str]]:
    for argument in arguments:
        key, equals, text = argument.partition("=")
        # Without its value: what is no key may be a mistyped one that holds a secret.
        origin = f"{LAYERS[1]}{key[:200]}"
        if not equals:
            raise UserError(f"{brief(argument)} is not key.path=value")
        path = _key_path(key, origin)
        if _is_key(path):
            origin = f"{LAYERS[1]}{argument if len(argument) <= 200 else key}"
        yield path, _value(path, text, origin), origin


def _value(path: KeyPath, text: str, origin: str) -> Any:
    """The value that YAML stands for. What is no key is not read: its error might repeat it."""
    return yaml12.load(text, origin)[0] if _is_key(path) else None


def _is_key(path: KeyPath) -> bool:
    """Whether a config, or a phase in it, has such a key; or one with items that have numbers."""
    if path[0] == "phases" and len(path) > 2:
        return isinstance(path[1], int) and _in_model(Phase, path[2:])
    return _in_model(Config, path)


def _in_model(model: type[BaseModel], path: KeyPath) -> bool:
    field = model.model_fields.get(str(path[0]))
    if field is None:
        return False
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return len(path) == 1 or _in_model(field.annotation, path[1:])
    if get_origin(field.annotation) is dict:  # which keys it has, its owner knows
        return True
    return all(isinstance(part, int) for part in path[1:])


def _key_path(dotted: str, origin: str) -> KeyPath:
    if not re.fullmatch(r"[^\W\d]\w*(\.\w+)*", dotted):
        raise UserError(f"{brief(dotted)} is not a key such as optimizer.lr ({origin})")
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
            place = origin_of(here, (), origins)
            raise UserError(
                f"{dotted(here)} is {brief(node)} ({place}), and no group of keys ({origin})"
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
        _forget(origins, {("phases",)})
    if path == ("phases",) and value is not None:
        tree["strategy"] = None
        origins["strategy",] = origin


def _stamp(origins: Origins, path: KeyPath, value: Any, origin: str) -> None:
    """Note that all of ``value`` came from ``origin``; other keys of a group keep theirs."""
    whole: set[KeyPath] = set()  # what takes the place of all that was there
    stamped: list[KeyPath] = []
    todo = [(path, value)]
    while todo:
        here, item = todo.pop()
        stamped.append(here)
        if not isinstance(item, dict):
            whole.add(here)
        if isinstance(item, dict | list):
            below = item.items() if isinstance(item, dict) else enumerate(item)
            todo += [((*here, key), inner) for key, inner in below]
    _forget(origins, whole)
    origins.update(dict.fromkeys(stamped, origin))


def _forget(origins: Origins, paths: Collection[KeyPath]) -> None:
    """Take out these and what is below them. Looks at each origin once, however many they are."""
    for other in [o for o in origins if any(o[:n] in paths for n in range(1, len(o) + 1))]:
        del origins[other]


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
        raise explain(error, Config, origins, ()) from None
    return config.model_copy(update={"phases": None})
