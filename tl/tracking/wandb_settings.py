"""How a run appears in Weights & Biases: pure functions of the config and the environment."""

from __future__ import annotations

import netrc
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tl.config import WandbConfig
from tl.errors import unknown
from tl.tracking.tracker import RunInfo

Mode = Literal["online", "offline", "disabled"]
# wandb's own names, with the older ones that it still takes.
_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
LOG_IN = "to log in: `wandb login`, or set WANDB_API_KEY"


def resolve_mode(
    configured: str, environ: Mapping[str, str], has_key: Callable[[], bool]
) -> tuple[Mode, str]:
    """The mode of a run, and a line that says why where it is not what was asked for.

    What the config says goes before WANDB_MODE; ``auto`` leaves it to that, and then to whether
    there is a key. Without a key there is nothing but offline: wandb would ask for one and wait.

    Args:
        configured: `tracking.wandb.mode`.
        environ: the environment.
        has_key: looks for a key; called only where it matters, since it takes a moment.

    Raises:
        UserError: WANDB_MODE is none of wandb's modes.
    """
    wanted, source = configured, "tracking.wandb.mode"
    if wanted == "auto":
        if environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
            return "disabled", "W&B is off: WANDB_DISABLED is set"
        wanted, source = environ.get("WANDB_MODE", "").lower() or "auto", "WANDB_MODE"
    if wanted != "auto" and wanted not in _MODES:
        raise unknown("mode", wanted, _MODES, source)
    mode = _MODES.get(wanted)
    if mode == "disabled":
        return "disabled", f"W&B is off: {source}=disabled" if configured == "auto" else ""
    if mode == "offline":
        return "offline", ""
    if has_key():
        return "online", ""
    if mode == "online":
        return "offline", f"W&B: {source}=online, but there is no key; {LOG_IN}"
    return "offline", f"W&B: there is no key, so the run is recorded offline; {LOG_IN}"


def key_for(server: str, environ: Mapping[str, str]) -> str | None:
    """The key that wandb would find for ``server`` (a URL) in the environment or in netrc."""
    if environ.get("WANDB_API_KEY"):
        return environ["WANDB_API_KEY"]
    host = urlsplit(server).netloc
    named = environ.get("NETRC")
    candidates = [named] if named else ["~/.netrc", "~/_netrc"]
    for path in candidates:
        try:
            found = netrc.netrc(Path(path).expanduser()).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        return (found and found[2]) or None
    return None


def init_arguments(config: WandbConfig, run: RunInfo, environ: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of ``wandb.init``, without mode and settings.

    A WANDB_* variable counts where the config says nothing of its own.
    """
    default = WandbConfig()
    project = environ.get("WANDB_PROJECT") if config.project == default.project else None
    tags = [tag for tag in environ.get("WANDB_TAGS", "").split(",") if tag]
    return {
        "project": project or config.project,
        "entity": config.entity or environ.get("WANDB_ENTITY") or None,
        "name": config.name or environ.get("WANDB_NAME") or run.run_dir.resolve().name,
        "group": config.group or environ.get("WANDB_RUN_GROUP") or None,
        "tags": config.tags or tags or None,
        "id": environ.get("WANDB_RUN_ID") or run.run_id,
        # A restart of the run goes on with what the server has of it.
        "resume": "allow",
        "dir": environ.get("WANDB_DIR") or str(run.run_dir),
        "config": run.config,
    }


def secret_of_slurm(variable: str) -> bool:
    """Whether a variable of the environment is a secret that wandb would record.

    It records each one of Slurm's. ``scontrol token`` puts a user's credentials in SLURM_JWT, and
    plugins have theirs.
    """
    return bool(re.match("SLURM_.*(JWT|TOKEN|SECRET|PASS|KEY|CRED|AUTH|SPANK)", variable.upper()))


def quiet_settings(wandb: Any, init_seconds: float, finish_seconds: float, **more: Any) -> Any:
    """``wandb.Settings`` of a view that stays in the background."""
    values: dict[str, Any] = {
        "silent": True,  # its banners; the tracker says what matters in a line
        "console": "off",  # do not capture what the run prints
        "save_code": False,
        # The commit is recorded, the uncommitted changes are not: they may hold anything.
        "disable_code": True,
        # Nor is the remote: of https://TOKEN:x-oauth-basic@host wandb takes out the wrong half.
        "git_remote": "not-recorded",
        "init_timeout": init_seconds,
        "finish_timeout": finish_seconds,
        "finish_timeout_raises": True,
        **more,
    }
    # Some are younger than the oldest wandb that the project takes.
    known = wandb.Settings.model_fields
    return wandb.Settings(**{key: value for key, value in values.items() if key in known})
