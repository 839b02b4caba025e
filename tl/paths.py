"""Paths in a config: `~` is the home folder, and what is written down is good from any folder."""

from __future__ import annotations

from pathlib import Path

from tl.config import Config
from tl.errors import UserError

WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")


def is_weights_path(text: str) -> bool:
    """Whether ``text`` names a file or folder: it exists, has a separator or a weights suffix."""
    return (
        "/" in text or "\\" in text or text.casefold().endswith(WEIGHTS_SUFFIXES) or _exists(text)
    )


def expanded(text: str, key: str) -> str:
    """``text`` with the home folder for a leading ``~`` or ``~name``.

    Raises:
        UserError: there is no such home.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise UserError(f"{key}: no home folder is known for {text}; write the path out") from None


def absolute(text: str, key: str) -> str:
    """The same place, said from the root: it stays right in another working directory."""
    return str(Path(expanded(text, key)).absolute())  # with its links and ".." as they are


def with_paths(config: Config) -> Config:
    """``config`` with absolute paths for its data, weights and cache, and the home in ``run_dir``.

    ``run_dir`` stays as short as it was given: it is in what is said to people.
    """
    data, model = config.data, config.model
    for key in ("root", "source_root", "target_root"):
        given = getattr(data, key)
        # The target is a folder whatever the source is.
        if given is not None and (key == "target_root" or _is_folder(data.source, given)):
            data = data.model_copy(update={key: absolute(given, f"data.{key}")})
    if model.weights is not None and is_weights_path(model.weights):
        model = model.model_copy(update={"weights": absolute(model.weights, "model.weights")})
    grafts = [
        graft.model_copy(update={"weights": absolute(graft.weights, "model.reuse.graft")})
        for graft in model.reuse.graft
    ]
    if grafts:
        reuse = model.reuse.model_copy(update={"graft": grafts})
        model = model.model_copy(update={"reuse": reuse})
    cache = config.cache
    if cache.folder is not None:
        cache = cache.model_copy(update={"folder": absolute(cache.folder, "cache.folder")})
    run_dir = config.run_dir and expanded(config.run_dir, "run_dir")
    return config.model_copy(
        update={"data": data, "model": model, "cache": cache, "run_dir": run_dir}
    )


def _is_folder(source: str, root: str) -> bool:
    """Code from outside may take something else for its root, such as the address of a store."""
    outside = ":" in source and not source.startswith("torchvision:")
    return not outside or _exists(root)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null character, nobody's home
        return False
