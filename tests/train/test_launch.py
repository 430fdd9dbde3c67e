"""Environment variables become torchrun's arguments, and its processes get the user's flags."""

from __future__ import annotations

import pytest

from llava_tools.errors import UserError
from llava_tools.train import launch


def test_variables_become_torchrun_arguments() -> None:
    environ = {"NPROC_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "1", "ADDR": "h", "PORT": "29"}
    assert launch.torchrun_arguments(environ) == [
        "--nnodes=2",
        "--node_rank=1",
        "--nproc_per_node=8",
        "--master_addr=h",
        "--master_port=29",
    ]


def test_the_port_is_random_in_xtuners_range() -> None:
    port = int(launch.torchrun_arguments({"NPROC_PER_NODE": "2"})[-1].split("=")[1])
    assert 20000 <= port <= 29999


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5"])
def test_a_wrong_number_of_processes(text: str) -> None:
    with pytest.raises(UserError, match=f"NPROC_PER_NODE={text} is not a number"):
        launch.read_sizes({"NPROC_PER_NODE": text})


def test_several_nodes_need_a_port() -> None:
    with pytest.raises(UserError, match="PORT is not set"):
        launch.torchrun_arguments({"NNODES": "2"})


def test_children_get_every_flag() -> None:
    arguments = launch.train_arguments("c.py", "w", "deepspeed_zero2", 7, "auto", ["lr=1", "a.b=2"])
    assert (
        arguments
        == (
            "train c.py --launcher pytorch --work-dir w --deepspeed deepspeed_zero2 --seed 7 "
            "--resume --cfg-options lr=1 a.b=2"
        ).split()
    )
    assert launch.train_arguments("c.py", None, None, None, "i.pth", [])[-2:] == [
        "--resume",
        "i.pth",
    ]


def test_slurm_variables() -> None:
    environ = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "ADDR": "node"}
    assert launch.slurm_variables(environ) == {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node",
        "MASTER_PORT": "29500",
    }
    with pytest.raises(UserError, match="SLURM_PROCID is not set"):
        launch.slurm_variables({})


def test_an_unknown_launcher() -> None:
    with pytest.raises(UserError, match="Unknown launcher 'mpi'"):
        launch.launch("c.py", launcher="mpi")
