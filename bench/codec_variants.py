#!/usr/bin/env python
"""Ways to spend 288 bits a curve, in one table from one run.

Usage: python bench/codec_variants.py RUN_DIR [--steps 600] [--out bench/results/codec_variants.json]

RUN_DIR holds data/processed as 00_data writes it. Every variant has the same network, data, seed and number of
steps; errors are of people of split test (at most 2,000 blows), medians and 95th percentiles, mL and mL/s.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from spiro_diffusion.base.files import write_json
from spiro_diffusion.data import load_prepared
from spiro_diffusion.learning.curves import align
from spiro_diffusion.learning.training import TrainConfig, all_sum, train
from spiro_diffusion.vqvae import (
    VQVAE,
    LossWeights,
    VQConfig,
    code_usage,
    codec_loss,
    reconstruction_errors,
)


class Codebook(nn.Module):
    """512 vectors kept by exponential averages (van den Oord 2017), dead ones revived; `depth` > 1: residual codes (Zeghidour 2021).

    gradient: "straight" through, or "rotation" (Fifty 2024).
    """

    def __init__(self, dim: int, depth: int = 1, gradient: str = "straight", size: int = 512):
        super().__init__()
        self.gradient, self.depth, self.size = gradient, depth, size
        self.register_buffer("vectors", torch.randn(depth, size, dim))
        self.register_buffer("count", torch.ones(depth, size))
        self.register_buffer("total", self.vectors.clone())
        self.commitment = torch.zeros(())

    def digits(self, z: Tensor) -> Tensor:
        """Codes (N, depth, P), each the nearest vector to what the ones before it left over."""
        rest, found = z.movedim(1, 2), []
        for level in range(self.depth):
            distance = (self.vectors[level] ** 2).sum(1) - 2 * rest @ self.vectors[level].T
            found.append(distance.argmin(-1))
            rest = rest - self.vectors[level][found[-1]]
        return torch.stack(found, 1)

    def codes(self, digits: Tensor) -> Tensor:
        return digits.movedim(1, 2).flatten(1)

    def values(self, digits: Tensor) -> Tensor:
        return sum(self.vectors[level][digits[:, level]] for level in range(self.depth)).movedim(
            -1, 1
        )

    @torch.no_grad()
    def learn(self, z: Tensor, digits: Tensor, decay: float = 0.97) -> None:
        """Move the vectors to the mean of what is nearest to them; a vector that nothing is near restarts at a random latent."""
        rest = z.movedim(1, 2).reshape(-1, z.shape[1])
        for level in range(self.depth):
            index = digits[:, level].reshape(-1)
            one = all_sum(torch.bincount(index, minlength=self.size).float())
            total = all_sum(torch.zeros_like(self.total[level]).index_add_(0, index, rest))
            self.count[level].lerp_(one, 1 - decay), self.total[level].lerp_(total, 1 - decay)
            dead = self.count[level] < 0.1
            fresh = rest[torch.randint(len(rest), (int(dead.sum()),))]
            self.total[level][dead], self.count[level][dead] = fresh, 1.0
            self.vectors[level] = self.total[level] / self.count[level][:, None]
            rest = rest - self.vectors[level][index]

    def forward(self, z: Tensor, quantise: bool = True) -> Tensor:
        digits = self.digits(z)
        if self.training:
            self.learn(z.detach(), digits)
        q = self.values(digits)
        self.commitment = (z - q.detach()).square().mean()
        if self.gradient == "straight":
            return q + (z - z.detach())
        e, t = (
            z.movedim(1, -1),
            q.movedim(1, -1).detach(),
        )  # rotate and scale e onto t; the rotation is a constant
        a, b = nn.functional.normalize(e.detach(), dim=-1), nn.functional.normalize(t, dim=-1)
        w = nn.functional.normalize(a + b, dim=-1)
        turned = e - 2 * (e * w).sum(-1, keepdim=True) * w + 2 * (e * a).sum(-1, keepdim=True) * b
        return (
            turned * (t.norm(dim=-1, keepdim=True) / e.detach().norm(dim=-1, keepdim=True))
        ).movedim(-1, 1)


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    config: VQConfig = VQConfig()
    weights: LossWeights = LossWeights()
    codebook: tuple[int, int, str] | None = None  # dimension, depth, gradient
    straight: bool = True  # the closed-form linear paths
    learn: bool = True


def variants(width: int, blocks: int) -> list[Variant]:
    base = VQConfig(width=width, blocks=blocks)
    shape = lambda levels, positions=32: replace(base, levels=levels, positions=positions)
    none = replace(LossWeights(), volume=0.0, end=0.0)
    return [
        Variant("scalar, 512 levels (the choice)", base),
        Variant("... straight paths only, no network", base, learn=False),
        Variant("... network only, no straight paths", base, straight=False),
        Variant("... without the volume terms", base, none),
        Variant("scalar, 32 x 16 levels", shape((32, 16))),
        Variant("scalar, 8 x 8 x 8 levels", shape((8, 8, 8))),
        Variant("16 positions of 18 bits, 512 x 512 levels", shape((512, 512), 16)),
        Variant("64 positions of 4.5 bits, 22 levels", shape((22,), 64)),
        Variant(
            "EMA codebook with revival, 4 dimensions", shape((2,) * 4), codebook=(4, 1, "straight")
        ),
        Variant(
            "EMA codebook, rotation trick, 4 dimensions",
            shape((2,) * 4),
            codebook=(4, 1, "rotation"),
        ),
        Variant(
            "residual codes, 16 positions, 2 x 512, 4 dimensions",
            shape((2,) * 4, 16),
            codebook=(4, 2, "straight"),
        ),
    ]


def run(v: Variant, parts: dict[str, np.ndarray], steps: int, seed: int) -> dict[str, float | str]:
    """Train one variant and measure it on split test."""
    torch.manual_seed(seed)
    model, rows = VQVAE(v.config), torch.from_numpy(parts["train"])
    if v.codebook:
        model.quantiser = Codebook(*v.codebook)
        model.encoder.fit(align(rows[:8192]), align(rows[:8192]))
        for _ in range(30):  # the codebook settles on the first latents
            some = rows[torch.randint(len(rows), (512,))]
            model.quantiser(model.encoder(*align(some)).detach())
    model.fit(rows)
    if not v.straight:
        model.encoder.weight.zero_(), model.encoder.bias.zero_(), model.decoder.weight.zero_()
        (
            nn.init.xavier_normal_(model.encoder.out.weight),
            nn.init.xavier_normal_(model.decoder.unpatch.weight),
        )

    def loss(
        m: VQVAE, batch: tuple[Tensor, ...], generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict]:
        value, terms = codec_loss(m, batch, generator, step, v.weights)
        return value + (0.25 * m.quantiser.commitment if v.codebook else 0), terms

    seconds = 0.0
    if v.learn:
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                steps=steps, lr=1e-3, seed=seed, device="cpu", checkpoint_minutes=1e6
            )
            seconds = train(model, loss, (rows,), config, Path(folder) / v.name[:20])["seconds"]
    model.eval()
    with torch.no_grad():
        z = torch.from_numpy(model.latents(parts["test"]))
        codes, recon = (
            model.quantiser.codes(model.quantiser.digits(z)),
            model.decode_latents(z.numpy()),
        )
    errors = 1000 * reconstruction_errors(parts["test"], recon)
    usage = code_usage(codes.numpy(), max(512, int(codes.max()) + 1))
    return {
        "variant": v.name,
        **{f"{i} {c}": round(errors.loc[i, c], 1) for i in errors.index for c in ("median", "p95")},
        "used": usage["used"],
        "perplexity": round(usage["perplexity"]),
        "seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="bench/results/codec_variants.json")
    args = parser.parse_args()
    flow, metadata = load_prepared(args.run_dir)
    parts = {}
    for name, most in (("train", args.rows), ("test", 2000)):
        index = np.flatnonzero((metadata["split"] == name).to_numpy())
        parts[name] = np.asarray(
            flow[index[np.linspace(0, len(index) - 1, min(len(index), most)).astype(int)]]
        )
    table = []
    for v in variants(args.width, args.blocks):
        table.append(run(v, parts, args.steps, args.seed))
        print(table[-1], flush=True)
        write_json(
            args.out,
            {
                "steps": args.steps,
                "width": args.width,
                "blocks": args.blocks,
                "train": len(parts["train"]),
                "test": len(parts["test"]),
                "units": "mL and mL/s",
                "table": table,
            },
        )
    print(pd.DataFrame(table).to_string(index=False))


if __name__ == "__main__":
    main()
