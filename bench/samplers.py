"""Samplers in one run: how good the curves are, and how fast they come, against the number of network calls.

    python bench/samplers.py --run-dir RUN [--people 120] [--draws 10] [--skip-ddpm]

RUN holds data/processed (00_data, 02_latents) and checkpoints; without checkpoints the shipped weights are used.
Truth is the best blow of each of so many people of split test. Every sampler starts from the same noise. Quality is
the CRPS of FVC, FEV1, PEF and FEF25-75, as a ratio to the default sampler's (with the 95 % interval over people, in
which the chance of the draws is as well), and how much the draws of one person differ (SD of the index, mean over
people), likewise; speed is curves per second with decoding, timed in turns, a median of three. Calls are those of the U-Net, which the first step does without. Writes bench/results/samplers.json.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from spiro_diffusion.base.files import write_json
from spiro_diffusion.cldm import sample
from spiro_diffusion.data import load_prepared
from spiro_diffusion.generation.drawing import USUAL, load_models, starting_noise
from spiro_diffusion.latents import load_described
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.metrics.scores import bootstrap, crps
from spiro_diffusion.spirometry.indices import indices_on_clock

SAMPLERS = [("dpmpp", n) for n in (5, 3, 4, 6, 8, 12, 32)] + [
    ("ddim", 8),
    ("ddim", 16),
    ("ddim", 50),
    ("heun", 4),
    ("heun", 8),
    ("heun", 18),
    ("ddpm", 50),
    ("ddpm", 100),
    ("ddpm", 1000),
]
NAMES = ("fvc", "fev1", "pef", "fef2575")


def curves(models, denoise, noise: torch.Tensor, method: str, steps: int) -> np.ndarray:
    """Flow (N, 512) L/s drawn from noise (N, C, 32)."""
    fresh = torch.Generator().manual_seed(1)
    latents = sample(
        denoise, noise, steps, method, lambda i: torch.randn(noise.shape, generator=fresh)
    )
    return models.vqvae.decode_latents(latents).numpy()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", default=".")
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument(
        "--skip-ddpm", action="store_true", help="leave out the 1000-step ancestral sampler"
    )
    args = parser.parse_args()
    models = load_models(args.run_dir)
    metadata = load_described(args.run_dir, load_prepared(args.run_dir)[1])
    held = metadata[
        (metadata["split"] == "test")
        & (metadata["test"] == "pre")
        & (metadata["blow"] == "best")
        & metadata["height"].notna()
        & (metadata["effort"] == "A")
    ]
    held = held.sample(min(args.people, len(held)), random_state=0)
    truth = indices_on_clock(load_prepared(args.run_dir)[0][held.index])
    values = torch.from_numpy(
        encode_patients(
            held[["age", "height", "gender"]].assign(**USUAL), models.cldm.settings.variables
        )
    ).repeat_interleave(args.draws, 0)
    shape = (models.cldm.settings.channels, models.cldm.settings.positions)
    noise = torch.from_numpy(
        starting_noise(
            held["SEQN"].repeat(args.draws).tolist(),
            np.tile(np.arange(args.draws), len(held)),
            0,
            shape,
        )
    )
    todo = [s for s in SAMPLERS if not (args.skip_ddpm and s == ("ddpm", 1000))]
    quality, spread, seconds = {}, {}, {s: [] for s in todo}
    for method, steps in todo:
        made = indices_on_clock(curves(models, models.cldm.denoiser(values), noise, method, steps))
        made = {n: made[n].to_numpy().reshape(len(held), -1) for n in NAMES}
        quality[method, steps] = np.stack([crps(made[n], truth[n].to_numpy()) for n in NAMES])
        spread[method, steps] = np.stack([made[n].std(1, ddof=1) for n in NAMES])
        print(method, steps, quality[method, steps].mean(1).round(4), flush=True)
    some = slice(0, 256)
    for turn in range(3):
        for method, steps in todo:
            if turn and steps == 1000:
                continue
            start = time.perf_counter()
            curves(models, models.cldm.denoiser(values[some]), noise[some], method, steps)
            seconds[method, steps].append((time.perf_counter() - start) / len(noise[some]))
    slow = statistics.median(seconds.get(("ddpm", 1000), [float("nan")]))
    ratio = lambda one, default, i: float((one[:, i].mean(1) / default[:, i].mean(1)).mean())
    everyone = np.arange(len(held))
    rows = []
    for method, steps in todo:
        each = statistics.median(seconds[method, steps])
        rows.append({
            "sampler": method, "steps": steps, "calls": (2 if method == "heun" else 1) * (steps - 1), **{f"crps_{n}": round(float(v), 4) for n, v in zip(NAMES, quality[method, steps].mean(1))},
            "crps_ratio": round(ratio(quality[method, steps], quality[todo[0]], everyone), 4),
            "crps_low_high": [round(v, 4) for v in bootstrap(lambda i, q=quality[method, steps]: ratio(q, quality[todo[0]], i), len(held), 1000, 0)],
            "spread_ratio": round(ratio(spread[method, steps], spread[todo[0]], everyone), 4), "curves_per_s": round(1 / each, 1), "times_ddpm1000": round(slow / each, 1) if slow == slow else None,
        })  # fmt: skip
        print(rows[-1])
    record = {
        "people": len(held),
        "draws": args.draws,
        "threads": torch.get_num_threads(),
        "weights_sha256": models.sha256,
        "rows": rows,
    }
    write_json(Path(__file__).parent / "results" / "samplers.json", record)


if __name__ == "__main__":
    main()
