"""What crosses a process: a run that is killed with SIGKILL and goes on, and a run of two processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spiro_diffusion.base.arrays import load_safetensors
from spiro_diffusion.base.files import read_json

SCRIPT = """
import sys, time
import torch
from torch import nn
from spiro_diffusion.training import TrainConfig, all_sum, save_model, train

folder, pause, steps = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(256, 3)
y = x.prod(1, keepdim=True)
model = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))
model.register_buffer("seen", torch.zeros(1))

def loss_fn(model, batch, generator, step):
    time.sleep(pause)
    model.seen += all_sum(torch.tensor([float(len(batch[0]))]))
    noise = NOISE * torch.randn(batch[0].shape, generator=generator)
    loss = nn.functional.mse_loss(model(batch[0] + noise), batch[1])
    return loss, {"rmse": loss.detach().sqrt()}

config = TrainConfig(steps=steps, batch=32, lr=1e-2, log_every=5, checkpoint_minutes=0, device="cpu")
train(model, loss_fn, (x, y), config, folder)
import torch.distributed as dist
if not dist.is_initialized() or dist.get_rank() == 0:
    save_model(folder, model, {})
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("NOISE", "0.05"))
    return path


def run(*command: object) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_killed_run_goes_on_bit_for_bit(script: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(script, whole, 0, 60)
    process = subprocess.Popen(
        [sys.executable, str(script), str(cut), "0.05", "60"], stderr=subprocess.DEVNULL
    )
    state = cut / "resume" / "state.json"
    for _ in range(600):
        if state.exists() and read_json(state)["step"] >= 10:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    step = read_json(state)["step"]
    assert 10 <= step < 60 and not (cut / "model.safetensors").exists()
    run(script, cut, 0, 60)
    a, b = (load_safetensors(folder / "model.safetensors") for folder in (whole, cut))
    assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)
    first, second = (read_json(folder / "history.json") for folder in (whole, cut))
    assert first["step"] == second["step"] and first["train"] == second["train"]


def test_two_processes_agree_with_one(script: Path, tmp_path: Path) -> None:
    script.write_text(SCRIPT.replace("NOISE", "0"))
    one, two = tmp_path / "one", tmp_path / "two"
    run(script, one, 0, 30)
    run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, script, two, 0, 30)
    a, b = (load_safetensors(folder / "model.safetensors") for folder in (one, two))
    assert a["seen"] == b["seen"] == 30 * 32, (
        "the statistics of a batch are summed over the processes"
    )
    assert all(np.allclose(a[k], b[k], atol=2e-4) for k in a)
