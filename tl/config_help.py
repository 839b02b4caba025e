"""The keys shown to people and editors: ``--help``, ``--print-config``, a JSON schema, a page.

    python -m tl.config_help > docs/keys.md

brings the page up to date.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tl import yaml12
from tl.arguments import Loaded
from tl.config import Config, GraftConfig, Phase, Training
from tl.mistakes import dotted, leaves
from tl.phases import STRATEGIES
from tl.yaml12 import KeyPath

GROUPS = {path[:n] for path, _ in leaves(Config) for n in range(1, len(path))}
"""keys that hold keys; what else is a mapping is a value"""


def type_name(annotation: Any) -> str:
    """How a type is written for people: ``float``, ``sgd | adamw``, ``int or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is dict:
        return "group"
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__.lower()
    return {"NoneType": "null", "str": "text"}.get(annotation.__name__, annotation.__name__)


def describe_keys() -> str:
    """Every key with its type, its default and one line, strategies and phases, for ``--help``."""
    title = "keys (as key.path=value, in a YAML file, or TL_KEY__PATH in the environment):"
    return "\n".join([title, "", *keys_of(Config), "", *_strategy_lines(), "", *_phase_lines()])


def keys_of(model: type[BaseModel]) -> list[str]:
    """Two lines for each key: its type and default, and what it means."""
    lines = []
    for path, field in leaves(model):
        default = yaml12.dump_inline(field.get_default(call_default_factory=True))
        lines.append(f"  {dotted(path)}: {type_name(field.annotation)} = {default}")
        lines.append(f"      {' '.join((field.description or '').split())}")
    return lines


def _strategy_lines() -> list[str]:
    """The names that `strategy` takes."""
    lines = ["strategies (strategy=NAME, or package.module:name of your own):", ""]
    return lines + [f"  {(s.__doc__ or n).splitlines()[0]}" for n, s in STRATEGIES.items()]


def _phase_lines() -> list[str]:
    """The keys of a phase; those that it shares with the whole run have that one's value."""
    lines = ["keys of a phase, N = 0, 1, … (what is not given is as at the top level):", ""]
    shared = {path for path, _ in leaves(Training)}
    for path, field in sorted(leaves(Phase), key=lambda leaf: leaf[0] in shared):
        default = f" = {dotted(path)}" if path in shared else " (required)"
        if path == ("name",):
            default = " = phase1, phase2, …"
        lines.append(f"  phases.N.{dotted(path)}: {type_name(field.annotation)}{default}")
        lines.append(f"      {' '.join((field.description or '').split())}")
    return lines


def describe_config(loaded: Loaded) -> str:
    """The resolved config as YAML that can be run, with a comment on where each value came from.

    What a strategy stands for follows as comments; so does, in phases that are spelled out, what
    they take from the top level: an override of that still reaches them.
    """
    pairs: list[tuple[str, str]] = []
    _append(pairs, loaded.values(), (), loaded.origins, indent=0)
    if loaded.tree.get("phases") is None:
        pairs.append((f"# {loaded.config.strategy} stands for these phases:", ""))
        spelled_out = [line for i in range(len(loaded.phases)) for line in _phase(loaded, i, "")]
        pairs += [(f"# {line}", origin) for line, origin in [("phases:", ""), *spelled_out]]
    else:
        if loaded.decided:
            pairs.append((f"# {loaded.decided['why']}", ""))
        pairs.append(("phases:", loaded.origins.get(("phases",), "command line")))
        pairs += [line for i in range(len(loaded.phases)) for line in _phase(loaded, i, "# ")]
    pairs = [(text, " ".join(origin.split())) for text, origin in pairs]  # a comment is one line
    width = min(40, max(len(text) for text, origin in pairs if origin))
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in pairs)


def _append(
    pairs: list[tuple[str, str]],
    values: Mapping[str, Any],
    path: KeyPath,
    origins: Mapping[KeyPath, str],
    indent: int,
) -> None:
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and here in GROUPS:
            pairs.append((f"{' ' * indent}{key}:", ""))
            _append(pairs, value, here, origins, indent + 2)
        else:
            line = f"{' ' * indent}{key}: {yaml12.dump_inline(value)}"
            pairs.append((line, origins.get(here, "default")))


def _phase(loaded: Loaded, number: int, mark: str) -> list[tuple[str, str]]:
    """The lines of a phase and where each value came from. ``mark`` is before what it inherits."""
    phase, own = loaded.phases[number], loaded.own[number]
    shown = phase.model_dump(exclude={"steps" if phase.steps is None else "epochs"})
    # An item of a list begins with what is its own.
    first = [key for key in ("name", "train") if key in own]
    lines: list[tuple[str, str]] = []

    def add(values: Mapping[str, Any], own: Mapping[str, Any], path: KeyPath, indent: int) -> None:
        for key, value in values.items():
            here, is_own = (*path, key), key in own
            start = " " * indent + ("" if is_own and own[key] != {} else mark)
            if isinstance(value, dict) and value:
                lines.append((f"{start}{key}:", ""))
                add(value, own.get(key, {}), here, indent + 2)
            else:
                origin = _origin_in_phase(loaded, number, here, is_own)
                lines.append((f"{start}{key}: {yaml12.dump_inline(value)}", origin))

    add({**{key: shown[key] for key in first}, **shown}, own, (), indent=2)
    return [(f"- {lines[0][0].lstrip()}", lines[0][1]), *lines[1:]]


def _origin_in_phase(loaded: Loaded, number: int, path: KeyPath, is_own: bool) -> str:
    origins = loaded.origins
    if not is_own:
        return f"top level, {origins[path]}" if path in origins else "default"
    strategy = f"strategy {loaded.config.strategy}, {origins.get(('strategy',), 'default')}"
    return origins.get(("phases", number, *path), strategy)


def json_schema() -> str:
    """A JSON schema of the config file, for the completion and checks of an editor."""
    schema = Config.model_json_schema()
    schema["$defs"]["Phase"]["required"] = ["train"]  # a phase without a name is given one
    return json.dumps(schema, indent=2)


PAGE = """\
# All keys

*Made by `python -m tl.config_help > docs/keys.md` from `tl/config/`; a test compares.*

Each can be set in a YAML file, in the environment (`TL_OPTIMIZER__LR=0.01`) or on the command line
(`optimizer.lr=0.01`), the later before the earlier, and all before the defaults that are shown.
Values are YAML. An unknown key or name is an error that offers the nearest one. `tl train --help`
has this in the terminal, `tl train --print-schema` for an editor; `--print-config` shows what a run
would get, and from where."""
SECTIONS = {
    "Training": "Of the run, or of a phase: what a phase does not give is as at the top level.",
    "The run": "",
    "data": "",
    "model": "",
    "tracking": "",
    "checkpoint": "",
    "cache": "",
    "Phases": "Each item of `phases` has these, and any key of training.",
    "Grafts": "Each item of `model.reuse.graft` has these.",
}


def markdown_page() -> str:
    """docs/keys.md: a table for each group of keys, then what `strategy` takes."""
    training = {path for path, _ in leaves(Training)}
    tables: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for path, field in leaves(Config):
        group = path[0] if path[0] in SECTIONS else "The run"
        tables["Training" if path in training else str(group)].append(_row(dotted(path), field))
    own = {("name",): "phase1, phase2, …", ("train",): None}
    tables["Phases"] = [
        _row(dotted(path), field, own[path]) for path, field in leaves(Phase) if path in own
    ]
    tables["Grafts"] = [_row(dotted(path).rstrip("_"), f) for path, f in leaves(GraftConfig)]
    blocks = [PAGE]
    for section, rows in tables.items():
        title = f"`{section}`" if section.islower() else section
        head = "| key | type | default | |\n|---|---|---|---|"
        blocks += [f"## {title}", *filter(None, [SECTIONS[section]]), "\n".join([head, *rows])]
    blocks += [
        "## Strategies",
        "`strategy=NAME`, or `package.module:name` of your own.",
        _bullets(),
    ]
    return "\n\n".join(blocks)


def _row(key: str, field: FieldInfo, default: str | None = "") -> str:
    if default == "":
        value = field.get_default(call_default_factory=True)
        default = None if field.is_required() else yaml12.dump_inline(value)
    shown = "required" if default is None else f"`{default}`"
    meaning = " ".join((field.description or "").split())
    cells = [f"`{key}`", f"`{type_name(field.annotation)}`", shown, _outside_code(meaning)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _outside_code(text: str) -> str:
    """``text`` with what Markdown would take for its own signs marked, but not in its code."""
    parts = re.split("(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<>\\])", r"\\\1", p) for p in parts)


def _bullets() -> str:
    said = [(strategy.__doc__ or name).splitlines()[0] for name, strategy in STRATEGIES.items()]
    pairs = (line.partition(": ")[::2] for line in said)
    return "\n".join(f"- `{how}`: {_outside_code(what)}" for how, what in pairs)


if __name__ == "__main__":
    print(markdown_page())
