"""How a run appears in Weights & Biases: pure functions of the config and the environment."""

from __future__ import annotations

import netrc
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tl.config.wandb import WandbConfig, check_name, check_project, check_tag
from tl.errors import UserError, brief, unknown
from tl.tracking.tracker import RunInfo
from tl.tracking.wandb_names import group_name, run_name, swept_keys, tags_of

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


def init_arguments(
    config: WandbConfig,
    run: RunInfo,
    environ: Mapping[str, str],
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of ``wandb.init``, without mode and settings.

    A WANDB_* variable counts where the config says nothing of its own.

    Args:
        earlier: where the run has been in W&B; a run that goes on keeps its name and group.

    Raises:
        UserError: a WANDB_* variable holds what W&B does not take.
    """
    default, earlier = WandbConfig(), earlier or {}
    project = _checked(environ, "WANDB_PROJECT", check_project)
    name = config.name or _checked(environ, "WANDB_NAME", check_name) or earlier.get("name")
    group = config.group or _checked(environ, "WANDB_RUN_GROUP", check_name) or earlier.get("group")
    job = _checked(environ, "WANDB_JOB_TYPE", check_name)
    tags = [tag for tag in environ.get("WANDB_TAGS", "").split(",") if tag]
    for tag in tags:
        _checked({"WANDB_TAGS": tag}, "WANDB_TAGS", check_tag)
    return {
        "project": (config.project == default.project and project) or config.project,
        "entity": config.entity or _checked(environ, "WANDB_ENTITY", check_project),
        "name": name or run_name(run.config, swept_keys(run.run_dir)),
        "group": group or group_name(run.config, environ),
        "job_type": (config.job_type == default.job_type and job) or config.job_type,
        "tags": list(dict.fromkeys([*tags_of(run.config), *(config.tags or tags)])),
        "notes": config.notes or environ.get("WANDB_NOTES") or None,
        "id": environ.get("WANDB_RUN_ID") or run.run_id,
        # A restart of the run goes on with what the server has of it.
        "resume": "allow",
        "dir": environ.get("WANDB_DIR") or str(run.run_dir),
        "config": without_home(run.config, environ.get("HOME", "")),
    }


def _checked(environ: Mapping[str, str], name: str, check: Callable[[str], str]) -> str | None:
    text = environ.get(name)
    if not text:
        return None
    try:
        return check(text)
    except ValueError as error:
        raise UserError(f"{name}={brief(text)} {error}") from None


def without_home(value: Any, home: str) -> Any:
    """``value`` with ``~`` for the home folder in its paths: who reads it has another one."""
    if isinstance(value, Mapping):
        return {key: without_home(item, home) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(item, home) for item in value]
    if isinstance(value, str) and len(home) > 1 and (value == home or value.startswith(f"{home}/")):
        return "~" + value[len(home) :]
    return value


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
