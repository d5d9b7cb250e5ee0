"""A server of this project in a process of its own, for benchmarks that ask it over HTTP."""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from specdec.checkpoint import save_checkpoint
from specdec.config import BlockConfig, ModelConfig
from specdec.model import ByteLlama


@contextmanager
def served(checkpoint: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """The address and process id of a server that is ready; ended by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "--checkpoint", str(checkpoint), "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "warning", *flags])
    url = f"http://127.0.0.1:{port}"
    try:
        while not _ready(url):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready") as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def resident_bytes(pid: int) -> int:
    """Memory that a process and its children hold, from /proc: the engine is a child of HTTP's."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(
        resident_bytes(int(child)) for child in children
    )


def thread_seconds(pid: int) -> dict[str, float]:
    """Processor time of each thread of a process so far, by "name/id"."""
    ticks = os.sysconf("SC_CLK_TCK")
    result = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        # the name is in parentheses and may hold spaces
        name, _, rest = (task / "stat").read_text().partition(") ")
        user, system = rest.split()[11:13]
        result[f"{name.partition('(')[2]}/{task.name}"] = (int(user) + int(system)) / ticks
    return result


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The flags that `asked_checkpoint` goes by."""
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/default"))
    parser.add_argument("--random", action="store_true", help="random weights, 512 wide, 10 layers")


@contextmanager
def asked_checkpoint(options: argparse.Namespace) -> Iterator[Path]:
    """The one named, or that of random weights, as long as it is wanted."""
    with tempfile.TemporaryDirectory() as directory:
        yield random_checkpoint(Path(directory), 512, 10) if options.random else options.checkpoint


def random_checkpoint(directory: Path, width: int, depth: int, context: int = 512) -> Path:
    """A model of random weights with 64-wide heads, as fast as a trained one of its shape."""
    torch.manual_seed(0)
    block = BlockConfig(
        hidden_size=width,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        intermediate_size=width * 11 // 4,
    )
    save_checkpoint(directory, ByteLlama(ModelConfig(block, depth, context)), None)
    return directory
