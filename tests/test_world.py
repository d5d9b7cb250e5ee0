"""The processes that train together: who goes first, whose word counts, whose GPU it is."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from patience import PATIENCE_S

from train.world import World

SCRIPT = """
    import sys
    import time
    from pathlib import Path

    import torch

    from train.world import World

    world = World()
    world.join(world.device("cpu"))
    path = Path(sys.argv[1]) / "written"
    failed = False
    if not world.leads:
        (Path(sys.argv[1]) / "waits").touch()
    try:
        with world.leader_first():
            if world.leads:
                while not (Path(sys.argv[1]) / "waits").exists():
                    time.sleep(0.01)
                time.sleep(0.5)
                path.touch()
            assert path.exists()
            raise KeyError
    except KeyError:
        failed = True
    assert failed
    assert world.leaders([torch.float32, torch.bfloat16][world.rank]) == torch.float32
    assert world.any(world.rank == 1)
    assert not world.any(False)
    world.leave()
"""


def test_the_leader_goes_first_and_its_word_counts(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **shared, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    done: list[object] = []
    monkeypatch.setattr("torch.cuda.set_device", done.append)
    monkeypatch.setattr(
        "torch.distributed.init_process_group", lambda backend, **more: done.append(backend)
    )
    world = World()
    device = world.device("cuda")
    world.join(device)
    # what is exchanged lies on it from the first exchange on
    assert done == [torch.device("cuda", 1), "nccl"]
    assert world.joined == device
    with pytest.raises(ValueError, match="cuda:0 is one GPU for 8 processes"):
        world.device("cuda:0")
    with pytest.raises(ValueError, match="device: tape"):
        world.device("tape")
    with pytest.raises(ValueError, match="12 rows cannot be shared evenly by 8 processes"):
        world.require_even(12)


def test_alone_there_is_nobody_to_wait_for() -> None:
    world = World()
    with world.leader_first():
        assert world.leaders("said") == "said"
    assert world.any(True)
    assert world.device("cuda:1") == torch.device("cuda", 1)
