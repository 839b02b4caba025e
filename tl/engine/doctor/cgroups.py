"""The limits that a container or a batch system set for this process: those of its cgroups."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def memory_limit(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes of memory that the process and its siblings may take; None: no limit is known."""
    found = [
        int(text)
        for file in ("memory.max", "memory.limit_in_bytes")
        for text in _values("memory", file, proc, root)
        if text.isdecimal()
    ]
    # Version 1 says "no limit" by a number of bytes that no machine has.
    return min((size for size in found if size < 2**60), default=None)


def cpu_limit(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """CPU seconds in each second that the process may take; None: no limit is known."""
    found = []
    for text in _values("cpu", "cpu.max", proc, root):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _values(controller: str, file: str, proc: Path, root: Path) -> list[str]:
    """What ``file`` says in the cgroup of this process and in all above it: each is a limit."""
    try:
        lines = proc.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        below = root / controller if controllers else root
        group = PurePosixPath(path)
        for each in (group, *group.parents):
            try:
                found.append((below / str(each).lstrip("/") / file).read_text("utf-8").strip())
            except OSError:
                continue
    return found
