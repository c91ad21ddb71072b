"""A killed run that is continued, a run of two processes, and what makes a step wait."""

from __future__ import annotations

import contextlib
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
from torch import nn
from waiting import OnDeviceAlone

from spiro_diffusion import cldm, vqvae
from spiro_diffusion.base.arrays import load_safetensors
from spiro_diffusion.base.files import read_json
from spiro_diffusion.completion import model as completion
from spiro_diffusion.learning import training

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


def codec_step() -> tuple[nn.Module, training.LossFn, tuple[torch.Tensor, ...]]:
    model = vqvae.VQVAE(vqvae.settings_for("smoke").model)
    return model, vqvae.codec_loss, (torch.rand(16, 512),)


def cldm_step() -> tuple[nn.Module, training.LossFn, tuple[torch.Tensor, ...]]:
    settings = cldm.settings_for("smoke")
    latents = torch.randn(16, settings.channels, settings.positions)
    values = torch.ones(16, len(settings.variables))
    return cldm.CLDM(settings), cldm.edm_loss, (latents, values)


def completion_step() -> tuple[completion.Completion, tuple[torch.Tensor, ...]]:
    settings = completion.CompletionSettings.of_length(10)
    values = torch.ones(16, len(settings.variables))
    return completion.Completion(settings), (torch.rand(16, 513).cumsum(1), values)


def forecast_step() -> tuple[nn.Module, training.LossFn, tuple[torch.Tensor, ...]]:
    model, batch = completion_step()
    return model, completion.forecast_loss, batch


def tail_step() -> tuple[nn.Module, training.LossFn, tuple[torch.Tensor, ...]]:
    model, batch = completion_step()
    return model, completion.tail_loss, batch


@pytest.mark.parametrize("make", [codec_step, cldm_step, forecast_step, tail_step])
def test_nothing_in_a_step_waits_for_the_device(
    make: Callable[[], tuple[nn.Module, training.LossFn, tuple[torch.Tensor, ...]]],
) -> None:
    """The meta device has no numbers to be read, and shows what is copied to it.

    AdamW's fused kernel does not exist there: plain gradient descent stands in for it.
    """
    model, loss_fn, batch = make()
    model.to("meta").train()
    run = training._Run(
        model=model,
        loss=training.LossModule(model, loss_fn),
        ema=training.Ema(model, 0.9),
        optimizer=torch.optim.SGD(model.parameters(), foreach=True),
        config=training.TrainConfig(steps=10),
        device=torch.device("meta"),
        generator=None,
        rank=0,
        world=1,
    )
    log = training._Log()
    data = tuple(part.to("meta") for part in batch)
    rows = training.Batches(16, 8, 0, "meta")
    for step in range(2):  # constants are copied in the first
        with contextlib.nullcontext() if step == 0 else OnDeviceAlone():
            picked = rows.rows(step)
            log.add(training._step(run, tuple(part[picked] for part in data), step))
