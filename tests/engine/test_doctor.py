"""What tl doctor makes of processes, folders, memory and nodes: each fault is found and named."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from full_disk import files_end_at
from gloo_workers import GlooWorkers, WorkerError
from hypothesis import given
from hypothesis import strategies as st

from tl.arguments import load
from tl.engine.doctor import cgroups, images, machine, storage, together


def wrong_sum() -> Any:
    """As a broken driver has it: one process gets another sum."""
    here = together.join(load(None, [], environ={}).config, 30)
    right = torch.distributed.all_reduce

    def reduce(tensor: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        done = right(tensor, *arguments, **keywords)
        if here.rank == 1 and tensor.numel() > 1000:
            tensor[-1] += 1
        return done

    torch.distributed.all_reduce = reduce
    try:
        return together.collective(here, 30)
    finally:
        torch.distributed.all_reduce = right


def test_a_wrong_sum_is_a_problem_and_names_the_process(gloo_workers: GlooWorkers):
    for finding in gloo_workers.run(2, wrong_sum):
        assert finding.kind == "problem"
        assert "wrong on rank 1" in finding.text


def join_alone(said: Path) -> None:
    """Of two processes, one waits for a peer that never comes."""
    if os.environ["RANK"] == "0":
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        together.join(load(None, [], environ={}).config, 1)


def test_processes_that_cannot_join_end_in_time_and_say_what_to_try(
    gloo_workers: GlooWorkers, tmp_path: Path
):
    with pytest.raises(WorkerError, match="the process has ended"):
        gloo_workers.run(2, join_alone, tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert "rank 0 on " in said
    assert "could not join the others for 1 s" in said
    assert "NCCL_SOCKET_IFNAME" in said


def test_a_folder_that_may_not_be_written_is_a_problem(not_root):
    not_root.chmod(0o555)
    found = storage.writable("run_dir", not_root / "runs" / "a", "give another")
    not_root.chmod(0o755)
    assert found.kind == "problem"
    assert "Permission denied" in found.text
    assert storage.writable("run_dir", not_root / "runs" / "a", "give another").kind != "problem"
    assert list(not_root.iterdir()) == []


def test_a_disk_that_takes_no_file_is_a_problem(tmp_path):
    with files_end_at(0):
        assert storage.writable("cache", tmp_path, "give another").kind == "problem"


def test_loader_workers_need_shared_memory(tmp_path):
    config = load(None, ["data.workers=2"], environ={}).config
    here: Any = SimpleNamespace(processes_on_node=1)
    # Five batches, of a quarter of what there is each, do not go in.
    batch = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize // 4
    found = machine.memory(here, batch, config, shm=tmp_path)[-1]
    assert (found.kind, "data.workers" in found.mend) == ("problem", True)
    assert machine.memory(here, 1000, config, shm=tmp_path)[-1].kind == "ok"
    assert machine.memory(here, 1000, config, shm=tmp_path / "none")[-1].kind == "problem"


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_images_are_picked_evenly(total, most):
    chosen = images.evenly(total, most)
    assert len(chosen) == min(total, most)
    gaps = {int(b - a) for a, b in zip(chosen, [*chosen[1:], total], strict=True)}
    assert chosen[0] == 0
    assert max(gaps) - min(gaps) <= 1


def test_nodes_that_differ_are_named():
    same = {"torch": "2.14", "wandb": "0.31"}
    nodes = [("n1", same, ["A100"]), ("n2", {**same, "torch": "2.13"}, ["H100"])]
    found = together.compare(nodes)
    assert [each.kind for each in found] == ["problem", "note"]
    assert "torch differs: 2.14 on n1, 2.13 on n2" in found[0].text
    assert "A100 on n1, H100 on n2" in found[1].text
    assert [each.kind for each in together.compare([nodes[0], ("n2", same, ["A100"])])] == ["ok"]
    assert (
        "none on n2" in together.compare([("n1", same, []), ("n2", {"torch": "2.14"}, [])])[0].text
    )


def test_limits_of_cgroups_are_found_in_both_versions(tmp_path):
    proc = tmp_path / "cgroup"
    for path, text in {
        "job/memory.max": "max",
        "memory.max": "4000",
        "job/cpu.max": "150000 100000",
        "cpu.max": "max 100000",
        "memory/old/memory.limit_in_bytes": "3000",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    proc.write_text("0::/job\n")
    assert cgroups.memory_limit(proc, tmp_path) == 4000
    assert cgroups.cpu_limit(proc, tmp_path) == 1.5
    proc.write_text("5:memory:/old\n")
    assert cgroups.memory_limit(proc, tmp_path) == 3000
    assert cgroups.memory_limit(tmp_path / "none", tmp_path) is None
