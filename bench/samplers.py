"""Samplers in one run: how good the curves are, and how fast they come, by network calls.

    python bench/samplers.py --run-dir RUN [--people 120] [--draws 6] [--many 500] [--skip-ddpm]

RUN holds data/processed (00_data, 02_latents) and checkpoints; without checkpoints the shipped
weights are used. Truth is the best blow of each of so many people of split test. Every sampler
starts from the same noise.

Quality is the CRPS of FVC, FEV1, PEF and FEF25-75, as a ratio to the default sampler's, with the
95 % interval over people, in which the chance of the draws is as well. Spread is how much the draws
of one person differ (SD of the index, mean over people), likewise. Speed is curves per second with
decoding, timed in turns, a median of three. Calls are those of the U-Net, which the first step does
without. As the ancestral sampler adds noise of its own, the default is judged beside 50 steps of it
on more people (`--many`) and with more draws too. Writes bench/results/samplers.json. A sampler is
added by a line in `RUNS`.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from spiro_diffusion.base.files import read_json, write_json
from spiro_diffusion.cldm import sample
from spiro_diffusion.data import load_prepared
from spiro_diffusion.generation.drawing import (
    DEFAULT_CONDITIONS,
    Models,
    load_models,
)
from spiro_diffusion.latents import load_described
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.learning.noise import starting_noise
from spiro_diffusion.metrics.scores import bootstrap, crps
from spiro_diffusion.spirometry.indices import indices_on_clock


class Run(NamedTuple):
    """A sampler and its number of steps."""

    method: str
    steps: int

    @property
    def calls(self) -> int:
        """Calls of the U-Net: none in the first step; two a step for heun."""
        return (self.steps - 1) * (2 if self.method == "heun" else 1)


DEFAULT = Run("dpmpp", 5)
ANCESTRAL = Run("ddpm", 50)
SLOWEST = Run("ddpm", 1000)  # the ancestral sampler with as many steps as in Ho et al. (2020)
RUNS = [
    DEFAULT,
    *(Run("dpmpp", steps) for steps in (3, 4, 6, 8, 12, 32)),
    *(Run("ddim", steps) for steps in (8, 16, 50)),
    *(Run("heun", steps) for steps in (4, 8, 18)),
    ANCESTRAL,
    Run("ddpm", 100),
    SLOWEST,
]
NAMES = ["fvc", "fev1", "pef", "fef2575"]
TIMED_CURVES = 256
TURNS = 3
RESAMPLES = 1000  # of the bootstrap over people
SEED = 0  # of the draws


@dataclass
class Task:
    """What every sampler has to draw: `draws` curves for each of the people."""

    models: Models
    truth: pd.DataFrame  # a row a person: the indices of the best blow
    values: torch.Tensor  # (people * draws, K) clinical values
    noise: torch.Tensor  # (people * draws, C, P)

    @property
    def people(self) -> int:
        return len(self.truth)

    def curves(self, run: Run, most: int | None = None) -> np.ndarray:
        """Flow (N, 512) L/s of all rows, or of at most so many."""
        noise = self.noise[:most]
        generator = torch.Generator().manual_seed(1)

        def fresh(step: int) -> torch.Tensor:
            return torch.randn(noise.shape, generator=generator)

        denoise = self.models.cldm.denoiser(self.values[:most])
        latents = sample(denoise, noise, run.steps, run.method, fresh)
        return self.models.vqvae.decode_latents(latents).numpy()


@dataclass
class Quality:
    """How good the draws of a sampler are, by index (rows, as `NAMES`) and person (columns)."""

    crps: np.ndarray
    spread: np.ndarray


def source_of(run_dir: str | Path) -> str:
    """What the blows of a run are: "simulated blows for real people"."""
    processed = Path(run_dir) / "data" / "processed"
    return str(read_json(processed / "preparation.json")["source"])


def held_out(metadata: pd.DataFrame, people: int) -> pd.DataFrame:
    """The best blow of at most so many people of split test; the index says its row in the signals.

    metadata: as `load_described` gives it.
    """
    chosen = (
        (metadata["split"] == "test")
        & (metadata["test"] == "pre")
        & (metadata["blow"] == "best")
        & (metadata["effort"] == "A")
        & metadata["height"].notna()
    )
    held = metadata[chosen]
    return held.sample(min(people, len(held)), random_state=0)


def task_of(run_dir: str, people: int, draws: int) -> Task:
    """The people, their indices, and the noise from which everyone's curves start."""
    models = load_models(run_dir)
    settings = models.cldm.settings
    signals, metadata = load_prepared(run_dir)
    held = held_out(load_described(run_dir, metadata), people)
    patients = held[["age", "height", "gender"]].assign(**DEFAULT_CONDITIONS)
    values = torch.from_numpy(encode_patients(patients, settings.variables))
    noise = starting_noise(
        held["SEQN"].repeat(draws).tolist(),
        np.tile(np.arange(draws), len(held)).tolist(),
        SEED,
        (settings.channels, settings.positions),
    )
    return Task(
        models,
        indices_on_clock(signals[held.index]),
        values.repeat_interleave(draws, 0),
        noise,
    )


def quality_of(task: Task, run: Run) -> Quality:
    """CRPS and spread of a sampler's draws."""
    made = indices_on_clock(task.curves(run))
    drawn = [made[name].to_numpy().reshape(task.people, -1) for name in NAMES]
    true = [task.truth[name].to_numpy() for name in NAMES]
    return Quality(
        crps=np.stack([crps(d, t) for d, t in zip(drawn, true, strict=True)]),
        spread=np.stack([d.std(1, ddof=1) for d in drawn]),
    )


def seconds_a_curve(task: Task, runs: list[Run]) -> dict[Run, float]:
    """Median time of a curve, in turns; the slowest sampler is timed once."""
    seconds: dict[Run, list[float]] = {run: [] for run in runs}
    count = len(task.noise[:TIMED_CURVES])
    for turn in range(TURNS):
        for run in runs:
            if turn and run == SLOWEST:
                continue
            start = time.perf_counter()
            task.curves(run, TIMED_CURVES)
            seconds[run].append((time.perf_counter() - start) / count)
    return {run: statistics.median(times) for run, times in seconds.items()}


def ratio(one: np.ndarray, default: np.ndarray, people: np.ndarray) -> float:
    """How large `one` is beside `default`, each a mean over people: the mean over indices."""
    return float((one[:, people].mean(1) / default[:, people].mean(1)).mean())


def row_of(
    run: Run, quality: Quality, default: Quality, seconds: float, slowest: float | None
) -> dict[str, Any]:
    """One row of the table."""
    count = quality.crps.shape[1]
    everyone = np.arange(count)

    def crps_ratio(people: np.ndarray) -> float:
        return ratio(quality.crps, default.crps, people)

    interval = bootstrap(crps_ratio, count, RESAMPLES, 0)
    means = zip(NAMES, quality.crps.mean(1), strict=True)
    return {
        "sampler": run.method,
        "steps": run.steps,
        "calls": run.calls,
        **{f"crps_{name}": round(float(value), 4) for name, value in means},
        "crps_ratio": round(crps_ratio(everyone), 4),
        "crps_low_high": [round(value, 4) for value in interval],
        "spread_ratio": round(ratio(quality.spread, default.spread, everyone), 4),
        "curves_per_s": round(1 / seconds, 1),
        "times_ddpm1000": None if slowest is None else round(slowest / seconds, 1),
    }


def beside_ancestral(task: Task) -> dict[str, Any]:
    """The default's CRPS and spread as ratios to those of 50 ancestral steps."""
    default = quality_of(task, DEFAULT)
    ancestral = quality_of(task, ANCESTRAL)

    def crps_ratio(people: np.ndarray) -> float:
        return ratio(default.crps, ancestral.crps, people)

    everyone = np.arange(task.people)
    interval = bootstrap(crps_ratio, task.people, RESAMPLES, 0)
    return {
        "people": task.people,
        "crps_ratio": round(crps_ratio(everyone), 4),
        "crps_low_high": [round(value, 4) for value in interval],
        "spread_ratio": round(ratio(default.spread, ancestral.spread, everyone), 4),
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", default=".")
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--many", type=int, default=500, help="people beside ancestral steps")
    parser.add_argument("--skip-ddpm", action="store_true", help="leave out ddpm with 1000 steps")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "samplers.json"
    )
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parsed()
    task = task_of(args.run_dir, args.people, args.draws)
    runs = [run for run in RUNS if not (args.skip_ddpm and run == SLOWEST)]
    quality = {}
    for run in runs:
        quality[run] = quality_of(task, run)
        print(run.method, run.steps, quality[run].crps.mean(1).round(4), flush=True)
    seconds = seconds_a_curve(task, runs)
    rows = [
        row_of(run, quality[run], quality[DEFAULT], seconds[run], seconds.get(SLOWEST))
        for run in runs
    ]
    many = beside_ancestral(task_of(args.run_dir, args.many, 2 * args.draws))
    record = {
        "people": task.people,
        "draws": args.draws,
        "seed": SEED,
        "source": source_of(args.run_dir),
        "threads": torch.get_num_threads(),
        "weights_sha256": task.models.sha256,
        "rows": rows,
        "beside_ancestral": {**many, "draws": 2 * args.draws},
    }
    write_json(args.out, record)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
