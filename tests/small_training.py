"""A small training run: FOLDER NOISE KILL_AT, in its own process, or called (test_training)."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spiro_diffusion.learning.training import TrainConfig, save_model, train

STEPS = 60
BATCH = 32
NEVER = -1


class Model(nn.Module):
    """A regression that counts the rows it has seen, with a part that the loss does not use."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))
        self.unused = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1))


def run(folder: object, noise: float, kill_at: int = NEVER) -> None:
    """Train in `folder`; the process is killed before step `kill_at`."""
    torch.manual_seed(0)
    x = torch.randn(256, 3)
    y = x.prod(1, keepdim=True)
    model = Model()
    if os.environ.get("RANK") == "1":
        nn.init.ones_(model.inner[0].weight)  # it shall start from the weights of the first process

    def loss_fn(
        model: Model, batch: tuple[Tensor, ...], generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = torch.tensor([float(len(batch[0]))])
        if dist.is_initialized():
            dist.all_reduce(rows)
        model.seen += rows
        blurred = batch[0] + noise * torch.randn(batch[0].shape, generator=generator)
        loss = nn.functional.mse_loss(model.inner(blurred), batch[1])
        return loss, {"rmse": loss.detach().sqrt()}

    config = TrainConfig(
        steps=STEPS, batch=BATCH, lr=1e-2, log_every=5, checkpoint_minutes=0, device="cpu"
    )
    train(model, loss_fn, (x, y), config, str(folder))
    rank = dist.get_rank() if dist.is_initialized() else 0
    save_model(f"{folder}/of process {rank}", model, {})
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
