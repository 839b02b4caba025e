"""Reading a weights file without executing anything in it.

A ``.pth`` file is a pickle, and loading a pickle can run any code. So files are read as
safetensors, or with ``torch.load(weights_only=True)``, which knows tensors and containers and
nothing else.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tl.errors import UserError, printable, unknown

# Of what other types there are (complex, 8-bit floats) a network of ours has no parameters.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
# Where training scripts keep the weights among other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# What DistributedDataParallel and torch.compile put in front of every name.
_PREFIXES = ("module.", "_orig_mod.")


def read(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a weights file by their names, on the CPU.

    A dictionary under "state_dict", "model_state_dict" or "model" is unwrapped, and the prefixes of
    DistributedDataParallel and torch.compile are dropped. ``key`` is one more to look under, such
    as "teacher" or "model_ema": a dictionary's key, or what stands before names.

    Raises UserError if the file is missing or empty, is no weights file, is a TorchScript archive,
    or is a pickle that would run code (nothing is run), or has nothing under ``key``.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a folder without a model in it: a run folder has model/config.json and "
            "model/model.safetensors. Give such a folder or a weights file."
        )
    if not path.is_file():
        raise UserError(
            f"weights file {path} does not exist (current folder: {Path.cwd()}). Give "
            "the file with model.weights=FILE."
        )
    if path.stat().st_size == 0:
        raise UserError(f"weights file {path} is empty: copy or download it again.")
    loaded = safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    return state_dict(loaded, str(path), key)


def state_dict(loaded: object, source: str, key: str | None = None) -> dict[str, Tensor]:
    """The names and tensors in what was loaded; UserError (naming ``source``) if it has none."""
    top = loaded
    for wrapper in (key, *_WRAPPERS):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            if wrapper == key:
                key = None
            else:
                break
    if key is not None and isinstance(loaded, Mapping):
        loaded = _below(key, loaded, top, source)
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"{source} holds a {type(loaded).__name__} and not the named tensors of a network. "
            "Save them with torch.save(model.state_dict(), path)."
        )
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(
            f"{source} does not hold a network's weights alone: {_listed(others)} "
            f"{'is no tensor' if len(others) == 1 else 'are no tensors'}. Weights are looked for "
            f"at the top and under {', '.join(map(repr, _WRAPPERS))}.{_other_keys(loaded)}"
        )
    odd = [str(name) for name, value in loaded.items() if not _is_plain(value)]
    if odd:
        raise UserError(
            f"{source} holds tensors that are no plain real numbers, but sparse, quantized, "
            f"complex or the like: {_listed(odd)}. Convert them before saving."
        )
    state = {str(name): value for name, value in loaded.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _holds(loaded: object, key: object) -> bool:
    return isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)


def _below(key: str, loaded: Mapping[Any, Any], top: Any, source: str) -> Mapping[Any, Any]:
    """What is under ``key`` in a file whose weights are ``loaded``; UserError if nothing is."""
    if _holds(loaded, key):
        return loaded[key]
    start = f"{key}."
    below = {str(n).removeprefix(start): v for n, v in loaded.items() if str(n).startswith(start)}
    if not below:
        choices = {str(k) for holder in (top, loaded) for k in holder if _holds(holder, k)}
        parts = [str(name).split(".") for name in loaded]
        choices |= {".".join(p[:n]) for p in parts for n in (1, 2) if len(p) > n}
        raise unknown(f"key in {source}", key, choices, "model.weights_key")
    return below


def _other_keys(loaded: Mapping[str, object]) -> str:
    """Where else there are tensors by names, for who may have meant those."""
    keys = [
        str(key)
        for key, value in loaded.items()
        if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())
    ]
    if not keys:
        return ""
    return f" There are tensors under {_listed(keys)}: give model.weights_key={_listed(keys[:1])}."


def _is_plain(value: Tensor) -> bool:
    return (
        value.layout is torch.strided
        and value.dtype in (*_FLOATS, *_INTEGERS)
        and not (value.is_nested or value.is_quantized or value.is_meta)
    )


def _listed(names: list[str]) -> str:
    return ", ".join(printable(name)[:100] for name in names[:5])


def safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file as they are; UserError if it is none."""
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # mostly SafetensorError, but torch may not like a shape either
        raise _broken(path, error) from error


def _pickled(path: Path) -> Any:
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, which is a program and not weights. Where it is "
            "trusted, save torch.jit.load(path).state_dict() with torch.save and use that file."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_plain_pickle(path):
            raise UserError(
                f"{path} was not loaded: it is a plain pickle, which can run code, and nothing "
                "that is read is executed. If you trust it, load it once with pickle.load on a "
                "machine you can lose, and save only the weights: "
                "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
            ) from None
        wanted = _wanted_globals(path, str(error))
        if not wanted:
            raise _broken(path, error) from error
        raise UserError(
            f"{path} was not loaded: it is a pickle that would run code ({', '.join(wanted)}), and "
            "nothing that is read is executed. If you trust it, load it once with "
            "torch.load(path, weights_only=False) on a machine you can lose, and save only the "
            "weights: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise _broken(path, error) from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged archive can fail in any way; torch.load says what it makes of it
        return False


def _is_plain_pickle(path: Path) -> bool:
    """Whether `pickle.dump` wrote it; what `torch.save` wrote begins as a zip, or with a number."""
    with path.open("rb") as file:
        start = file.read(32)
    number = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
    return start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and number not in start


def _wanted_globals(path: Path, message: str) -> list[str]:
    """The functions and classes a pickle wants to call, read from it without calling them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        # Not a zip file, or one that cannot be listed: what the refusal says.
        return re.findall(r"(?:GLOBAL|function|class) ([\w.]+\.[\w.]+)", message)[:1]


def _broken(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()
    return UserError(
        f"{path} is no readable weights file ({type(error).__name__}: "
        f"{reason[0][:200] if reason else 'no reason given'}). It may be cut short, or of another "
        "kind: expected are safetensors and what torch.save(model.state_dict(), path) writes."
    )
