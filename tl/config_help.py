"""The keys shown to people and editors: ``--help``, ``--print-config``, a JSON schema."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from tl import yaml12
from tl.arguments import Loaded
from tl.config import Config
from tl.mistakes import dotted, leaves
from tl.yaml12 import KeyPath


def type_name(annotation: Any) -> str:
    """How a type is written for people: ``float``, ``sgd | adamw``, ``int or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__.lower()
    return {"NoneType": "null", "str": "text"}.get(annotation.__name__, annotation.__name__)


def describe_keys() -> str:
    """Every key with its type, its default and one line, for ``--help``."""
    lines = ["keys (as key.path=value, in a YAML file, or TL_KEY__PATH in the environment):", ""]
    for path, field in leaves(Config):
        default = yaml12.dump_inline(field.get_default(call_default_factory=True))
        lines.append(f"  {dotted(path)}: {type_name(field.annotation)} = {default}")
        lines.append(f"      {' '.join((field.description or '').split())}")
    return "\n".join(lines)


def describe_config(loaded: Loaded) -> str:
    """The resolved config as YAML that can be run, with a comment on where each value came from.

    What a strategy stands for follows as comments.
    """
    pairs: list[tuple[str, str]] = []
    _append(pairs, loaded.values(), (), loaded.origins, indent=0)
    if loaded.tree.get("phases") is None:
        pairs.append((f"# {loaded.config.strategy} stands for these phases:", ""))
        spelled_out = [phase.model_dump() for phase in loaded.phases]
        text = yaml12.dump({"phases": spelled_out})
        pairs += [(f"# {line}", "") for line in text.splitlines()]
    else:
        origin = loaded.origins.get(("phases",), "command line")
        text = yaml12.dump({"phases": loaded.tree["phases"]})
        first, *rest = text.splitlines()
        pairs += [(first, origin), *((line, "") for line in rest)]
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
        if isinstance(value, dict):
            pairs.append((f"{' ' * indent}{key}:", ""))
            _append(pairs, value, here, origins, indent + 2)
        else:
            line = f"{' ' * indent}{key}: {yaml12.dump_inline(value)}"
            pairs.append((line, origins.get(here, "default")))


def json_schema() -> str:
    """A JSON schema of the config file, for the completion and checks of an editor."""
    schema = Config.model_json_schema()
    schema["$defs"]["Phase"]["required"] = ["train"]  # a phase without a name is given one
    return json.dumps(schema, indent=2)
