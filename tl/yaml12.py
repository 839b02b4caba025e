"""YAML as a config needs it: safe, YAML 1.2 scalars, no equal keys, and the line of every value.

PyYAML follows YAML 1.1, where ``1e-3`` is a string, ``no`` is false, ``010`` is 8, ``1:30`` is 90
and the last of two equal keys wins in silence. Here ``1e-3`` is a number, ``no`` is the word that
`mixed_precision` takes, and two equal keys are an error. Nothing is executed: only the plain
types null, bool, int, float, str, list and dict can come out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from tl.errors import UserError, brief

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_DIGITS = r"[0-9](?:_?[0-9])*"
_INT = re.compile(rf"[-+]?{_DIGITS}")
_FLOAT = re.compile(
    rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
# What a config may hold. PyYAML takes seconds for a megabyte; and aliases are counted as what they
# stand for, since that is what has to be checked, shown and written.
_DEEPEST = 32
_MOST_VALUES = 100_000
MOST_CHARACTERS = 2**20
# Stands for "without quotes, without a tag"; what it is worth is decided by `_plain`.
_UNTAGGED = "untagged"
_STR, _SEQUENCE, _MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


def _plain(text: str) -> Any:
    """The value of a scalar that stands without quotes (YAML 1.2 core schema)."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    return text


@dataclass
class _Text:
    """A document, where its values stand, and how much of it there is so far."""

    source: str
    origins: dict[KeyPath, str] = field(default_factory=dict)
    characters: int = 0

    def count(self, text: str, where: str) -> None:
        """Raise UserError if keys and values become too much with this one."""
        self.characters += len(text)
        if len(self.origins) >= _MOST_VALUES or self.characters > MOST_CHARACTERS:
            raise UserError(
                f"{where}: more than {_MOST_VALUES} values, or {MOST_CHARACTERS} characters, with"
                " what the aliases stand for"
            )


def _convert(node: yaml.Node, path: KeyPath, text: _Text) -> Any:
    where = f"{text.source}:{node.start_mark.line + 1}"
    if len(path) > _DEEPEST:
        raise UserError(f"{where}: nested more than {_DEEPEST} deep, or an alias of itself")
    text.count(node.value if isinstance(node, yaml.ScalarNode) else "", where)
    _refuse_tag(node, where)
    text.origins[path] = where
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{text.source}:{key_node.start_mark.line + 1}"
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a word")
            text.count(key, line)
            _refuse_tag(key_node, line)
            if key == "<<" and key_node.tag == _UNTAGGED:
                raise UserError(f"{line}: merge keys (<<) are not supported, write the keys out")
            if key in result:
                raise UserError(
                    f"{line}: the key {brief(key)} stands here a second time, remove one"
                )
            result[key] = _convert(value_node, (*path, key), text)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, (*path, i), text) for i, item in enumerate(node.value)]
    try:
        return _plain(node.value) if node.tag == _UNTAGGED else node.value
    except ValueError:  # Python refuses to read an integer of thousands of digits
        raise UserError(f"{where}: a number of {len(node.value)} digits is too long") from None


def _refuse_tag(node: yaml.Node, where: str) -> None:
    if node.tag not in (_UNTAGGED, _STR, _SEQUENCE, _MAPPING):
        raise UserError(f"{where}: the tag {brief(node.tag)} is not allowed, plain values only")


class _Loader(yaml.SafeLoader):
    """Marks scalars without quotes, in place of guessing their types by YAML 1.1."""

    yaml_implicit_resolvers = {None: [(_UNTAGGED, re.compile(""))]}  # noqa: RUF012 - PyYAML's own


def load(text: str, source: str) -> tuple[Any, dict[KeyPath, str]]:
    """Parse YAML.

    Returns the value, and for the path of each key and item the place it came from as
    ``source:line``.

    Raises:
        UserError: broken syntax, equal keys, tags, merge keys, more than one document, or more
            than a config can hold.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{source}: more than {MOST_CHARACTERS} characters, too many for a config")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        raise UserError(f"{source}: nested more than {_DEEPEST} deep") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark else source
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise UserError(f"{place}: not YAML: {problem[:300]}") from None
    if node is None:
        return None, {}
    result = _Text(source)
    return _convert(node, (), result), result.origins


def dump(value: Any) -> str:
    """YAML text that `load` reads back as the same value, keys in their order."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def dump_inline(value: Any) -> str:
    """The same on one line."""
    # In two lists, since one of mappings is not written on one line by itself.
    items = yaml.dump(
        [[value]],
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=math.inf,
    )
    return items.strip()[2:-2]


class _Dumper(yaml.SafeDumper):
    """Quotes whatever a reader of either YAML version would not take for a string."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None
    if text.splitlines() not in ([], [text]):
        style = '"'  # which keeps it on one line
    elif _INT.fullmatch(text) or not isinstance(_plain(text), str):
        style = "'"
    return dumper.represent_scalar(_STR, text, style=style)


def _represent_float(dumper: yaml.SafeDumper, number: float) -> yaml.Node:
    # PyYAML's own writes 1e-05 without a dot only to read it back as a string.
    if not math.isfinite(number):
        return yaml.SafeDumper.represent_float(dumper, number)
    text = repr(number)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(i, dict) for i in items)
    ),
)
