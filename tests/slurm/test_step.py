"""Tasks of `srun` find their places as those of a launcher do."""

from __future__ import annotations

import pytest

from tl.errors import UserError
from tl.slurm.step import as_launched

STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
}


def test_a_task_of_srun_knows_its_place():
    said = as_launched(STEP)
    assert (said["RANK"], said["LOCAL_RANK"], said["WORLD_SIZE"]) == ("3", "1", "4")
    assert (said["LOCAL_WORLD_SIZE"], said["MASTER_ADDR"]) == ("2", "n1")
    assert said["MASTER_PORT"] == as_launched({**STEP, "SLURM_PROCID": "0"})["MASTER_PORT"]


def test_a_launcher_a_batch_script_and_a_single_task_are_left_as_they_are():
    assert as_launched({}) == {}
    assert as_launched({**STEP, "RANK": "0"}) == {}
    assert as_launched({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    with pytest.raises(UserError, match="--ntasks-per-node"):
        as_launched({**STEP, "SLURM_STEP_NUM_TASKS": "3"})
