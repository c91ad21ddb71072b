"""What crosses a process: a killed run that is continued, and a run of two processes."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from spiro_diffusion.base.arrays import load_safetensors
from spiro_diffusion.base.files import read_json

SCRIPT = Path(__file__).with_name("small_training.py")


@pytest.fixture
def run_here() -> Iterator[Callable[..., None]]:
    """The small training, in this process, with one thread as in the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(SCRIPT))["run"]
    torch.set_num_threads(threads)


def run_elsewhere(*command: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=env, capture_output=True, text=True
    )


def weights(folder: Path, process: int = 0) -> dict[str, np.ndarray]:
    return load_safetensors(folder / f"of process {process}" / "model.safetensors")


def same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}


def test_killed_run_continues_bit_for_bit(run_here: Callable[..., None], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    cut = tmp_path / "cut"
    run_here(whole, noise=0.05)
    killed = run_elsewhere(SCRIPT, cut, 0.05, 37)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_json(cut / "resume" / "state.json")["step"] == 35
    run_here(cut, noise=0.05)
    assert same_bits(weights(whole), weights(cut))
    history = read_json(whole / "history.json")
    continued = read_json(cut / "history.json")
    assert history["step"] == continued["step"]
    assert history["train"] == continued["train"]


def test_two_processes_agree_with_one(run_here: Callable[..., None], tmp_path: Path) -> None:
    """Half of each batch in each; both hold the same weights, those of one with all of it."""
    one = tmp_path / "one"
    two = tmp_path / "two"
    run_here(one, noise=0.0)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    done = run_elsewhere(*torchrun, SCRIPT, two, 0, -1)
    assert done.returncode == 0, done.stderr[-3000:]
    first = weights(two, process=0)
    assert same_bits(first, weights(two, process=1))
    alone = weights(one)
    assert alone["seen"] == first["seen"] == 60 * 32
    for name, value in alone.items():
        np.testing.assert_allclose(first[name], value, atol=2e-4, err_msg=name)
    assert read_json(two / "history.json")["step"] == list(range(5, 61, 5))
