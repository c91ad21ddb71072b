"""Ways to spend 288 bits a curve, in one table from one run.

    python bench/codec_variants.py RUN_DIR [--steps 600] [--rows 9000] [--out FILE]

RUN_DIR holds data/processed as 00_data writes it. Every variant has the same network, data, seed
and number of steps; errors are of people of split test (at most 2,000 blows), medians and 95th
percentiles, mL, mL/s and ms (FET). A variant is added by an entry in `variants`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ablation import MOST_TEST_ROWS, random_turn
from samplers import source_of
from torch import Tensor, nn
from torch.nn.functional import normalize

from spiro_diffusion.base.files import write_json
from spiro_diffusion.data import load_prepared
from spiro_diffusion.learning.curves import align
from spiro_diffusion.learning.training import TrainConfig, train
from spiro_diffusion.vqvae import (
    VQVAE,
    LossWeights,
    Turn,
    VQConfig,
    code_usage,
    codec_loss,
    local_turn,
    reconstruction_errors,
)

FITTED_ROWS = 8192  # the straight path of a codec with a codebook is fitted to so many
COMMITMENT = 0.25  # weight of the commitment loss (van den Oord 2017)
DECAY = 0.97  # of a codebook's averages
DEAD = 0.1  # a vector that this many latents a batch or fewer are nearest to is revived
SETTLING = 30  # batches of 512 blows that a codebook sees before training


@dataclass(frozen=True)
class CodebookConfig:
    """A learned codebook in place of scalar quantisation."""

    dimensions: int = 4
    depth: int = 1  # over 1: residual codes (Zeghidour 2021)
    rotation: bool = False  # the rotation trick (Fifty 2024) instead of a straight-through gradient
    size: int = 512


class Codebook(nn.Module):
    """Vectors kept by exponential averages (van den Oord 2017), dead ones revived."""

    vectors: Tensor  # (depth, size, dimensions)
    count: Tensor  # (depth, size), latents a batch nearest to each, averaged
    total: Tensor  # (depth, size, dimensions), sums of these latents, averaged

    def __init__(self, config: CodebookConfig):
        super().__init__()
        self.config = config
        shape = (config.depth, config.size)
        self.register_buffer("vectors", torch.randn(*shape, config.dimensions))
        self.register_buffer("count", torch.ones(shape))
        self.register_buffer("total", self.vectors.clone())
        self.commitment = torch.zeros(())

    def digits(self, z: Tensor) -> Tensor:
        """Codes (N, depth, P), each the nearest vector to what the ones before it left over."""
        rest = z.movedim(1, 2)
        found = []
        for vectors in self.vectors:
            distance = (vectors**2).sum(1) - 2 * rest @ vectors.T
            nearest = distance.argmin(-1)
            found.append(nearest)
            rest = rest - vectors[nearest]
        return torch.stack(found, 1)

    def codes(self, digits: Tensor) -> Tensor:
        """Codes (N, P * depth)."""
        return digits.movedim(1, 2).flatten(1)

    def values(self, digits: Tensor) -> Tensor:
        """The sum of the vectors of all levels, (N, dimensions, P)."""
        levels = zip(self.vectors, digits.unbind(1), strict=True)
        return torch.stack([vectors[level] for vectors, level in levels]).sum(0).movedim(-1, 1)

    @torch.no_grad()
    def learn(self, z: Tensor, digits: Tensor) -> None:
        """Move each vector to the mean of what is nearest to it; revive the dead ones."""
        rest = z.movedim(1, 2).reshape(-1, z.shape[1])
        for level in range(self.config.depth):
            nearest = digits[:, level].reshape(-1)
            self._move(level, nearest, rest)
            rest = rest - self.vectors[level][nearest]

    def _move(self, level: int, nearest: Tensor, latents: Tensor) -> None:
        """One step of the averages of a level, from latents (M, dimensions) and their vectors."""
        counted = torch.bincount(nearest, minlength=self.config.size).float()
        summed = torch.zeros_like(self.total[level]).index_add_(0, nearest, latents)
        self.count[level].lerp_(counted, 1 - DECAY)
        self.total[level].lerp_(summed, 1 - DECAY)
        dead = self.count[level] < DEAD
        chosen = torch.randint(len(latents), (int(dead.sum()),))
        self.total[level][dead] = latents[chosen]
        self.count[level][dead] = 1.0
        self.vectors[level] = self.total[level] / self.count[level][:, None]

    def forward(self, z: Tensor, quantise: bool = True) -> Tensor:
        """Values (N, dimensions, P) for the decoder, and the commitment loss in `commitment`."""
        digits = self.digits(z)
        if self.training:
            self.learn(z.detach(), digits)
        values = self.values(digits)
        self.commitment = (z - values.detach()).square().mean()
        if self.config.rotation:
            return rotated(z.movedim(1, -1), values.movedim(1, -1).detach()).movedim(-1, 1)
        return values + (z - z.detach())


def rotated(z: Tensor, target: Tensor) -> Tensor:
    """`target` (..., D), as z turned and scaled onto it; to the gradient both are fixed."""
    origin = normalize(z.detach(), dim=-1)
    aim = normalize(target, dim=-1)
    middle = normalize(origin + aim, dim=-1)
    reflected = 2 * (z * middle).sum(-1, keepdim=True) * middle
    turned = z - reflected + 2 * (z * origin).sum(-1, keepdim=True) * aim
    return turned * (target.norm(dim=-1, keepdim=True) / z.detach().norm(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    config: VQConfig
    weights: LossWeights = LossWeights()
    codebook: CodebookConfig | None = None
    turn: Turn = local_turn  # of the components
    straight: bool = True  # the closed-form linear paths
    learn: bool = True


def variants(width: int, blocks: int) -> list[Variant]:
    """The rows of the table, in its order."""
    base = VQConfig(width=width, blocks=blocks)

    def shape(*levels: int, positions: int = 32) -> VQConfig:
        return replace(base, levels=levels, positions=positions)

    flow_only = replace(LossWeights(), volume=0.0, end=0.0)
    four = (2,) * 4  # four dimensions: their levels are not used
    return [
        Variant("scalar, 512 levels (the choice)", base),
        Variant("... components turned at random", base, turn=random_turn),
        Variant("... straight paths only, no network", base, learn=False),
        Variant("... network only, no straight paths", base, straight=False),
        Variant("... without the volume terms", base, flow_only),
        Variant("scalar, 32 x 16 levels", shape(32, 16)),
        Variant("scalar, 8 x 8 x 8 levels", shape(8, 8, 8)),
        Variant("16 positions of 18 bits, 512 x 512 levels", shape(512, 512, positions=16)),
        Variant("64 positions of 4.5 bits, 22 levels", shape(22, positions=64)),
        Variant("EMA codebook with revival, 4 dimensions", shape(*four), codebook=CodebookConfig()),
        Variant(
            "EMA codebook, rotation trick, 4 dimensions",
            shape(*four),
            codebook=CodebookConfig(rotation=True),
        ),
        Variant(
            "residual codes, 16 positions, 2 x 512, 4 dimensions",
            shape(*four, positions=16),
            codebook=CodebookConfig(depth=2),
        ),
    ]


def new_model(variant: Variant, rows: Tensor) -> VQVAE:
    """The codec of a variant, with the straight paths that it has, before training."""
    model = VQVAE(variant.config)
    if variant.codebook:
        model.quantiser = Codebook(variant.codebook)
        fitted = align(rows[:FITTED_ROWS])
        model.encoder.fit(fitted, fitted, variant.turn)
        for _ in range(SETTLING):
            some = rows[torch.randint(len(rows), (512,))]
            model.quantiser(model.encoder(align(some)).detach())
    model.fit(rows, turn=variant.turn)
    if not variant.straight:
        for weights in (model.encoder.weight, model.encoder.bias, model.decoder.weight):
            weights.zero_()
        for layer in (model.encoder.out, model.decoder.unpatch):
            nn.init.xavier_normal_(layer.weight)
    return model


def loss_of(
    model: VQVAE,
    batch: tuple[Tensor, ...],
    generator: torch.Generator,
    step: int,
    variant: Variant,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The codec's loss, with the commitment loss of a codebook."""
    loss, terms = codec_loss(model, batch, generator, step, variant.weights)
    if variant.codebook:
        loss = loss + COMMITMENT * model.quantiser.commitment
    return loss, terms


def run(variant: Variant, parts: dict[str, np.ndarray], steps: int, seed: int) -> dict[str, Any]:
    """Train one variant and measure it on split test: its row of the table."""
    torch.manual_seed(seed)
    rows = torch.from_numpy(parts["train"])
    model = new_model(variant, rows)
    seconds = 0.0
    if variant.learn:
        config = TrainConfig(steps=steps, lr=1e-3, seed=seed, device="cpu", checkpoint_minutes=1e6)
        loss = partial(loss_of, variant=variant)
        with tempfile.TemporaryDirectory() as folder:
            history = train(model, loss, (rows,), config, Path(folder) / variant.name[:20])
        seconds = history["seconds"]
    return {
        "variant": variant.name,
        **measure(model.eval(), parts["test"]),
        "seconds": round(seconds),
    }


def measure(model: VQVAE, held: np.ndarray) -> dict[str, float]:
    """Errors of the clinical indices in mL, mL/s and ms, and how many codes are used."""
    z = torch.from_numpy(model.latents(held))
    with torch.no_grad():
        codes = model.quantiser.codes(model.quantiser.digits(z))
    errors = 1000 * reconstruction_errors(held, model.decode_latents(z.numpy()))
    usage = code_usage(codes.numpy(), max(512, int(codes.max()) + 1))
    row = {}
    for index in errors.index:
        for column in ("median", "p95"):
            row[f"{index} {column}"] = round(errors.loc[index, column], 1)
    return {**row, "used": usage["used"], "perplexity": round(usage["perplexity"])}


def spaced(flow: np.ndarray, chosen: np.ndarray, most: int) -> np.ndarray:
    """At most so many evenly spaced rows of those chosen (N,) bool."""
    rows = np.flatnonzero(chosen)
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)
    return np.array(flow[rows[places]])


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
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    args = parser.parse_args()
    flow, metadata = load_prepared(args.run_dir)
    split = metadata["split"].to_numpy()
    parts = {
        "train": spaced(flow, split == "train", args.rows),
        "test": spaced(flow, split == "test", MOST_TEST_ROWS),
    }
    record = {
        "steps": args.steps,
        "width": args.width,
        "blocks": args.blocks,
        "train": len(parts["train"]),
        "test": len(parts["test"]),
        "units": "mL, mL/s; FET in ms",
        "seed": args.seed,
        "source": source_of(args.run_dir),
    }
    table = []
    for variant in variants(args.width, args.blocks):
        table.append(run(variant, parts, args.steps, args.seed))
        print(table[-1], flush=True)
        write_json(args.out, {**record, "table": table})
    print(pd.DataFrame(table).to_string(index=False))


if __name__ == "__main__":
    main()
