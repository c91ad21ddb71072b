"""How time and memory grow with a cohort written in partitions: 1,000, 10,000 and 100,000 curves, each in a process of its own.

    OMP_NUM_THREADS=1 .venv/bin/python bench/cohort_growth.py [--million] [--steps 5] [--partition 5000]

Writes bench/results/cohort_growth.json after each size and prints a table; sizes that are there, with the weights that
come with the package, are not drawn again (--again: they are). Growth is straight if the processor's time for a curve is the same at every size;
time on the clock is that of a machine that may have been shared. Peak memory is the process's largest resident set,
`base` that of the same process with the models loaded and nothing drawn.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from spiro_diffusion.base.files import read_json, sha256_of, shipped_weights, write_json
from spiro_diffusion.generation.drawing import DrawSettings

DRAWS = 20


def people(n: int) -> pd.DataFrame:
    """n patients of 20 to 79 years."""
    rng = np.random.default_rng(0)
    sex = rng.integers(1, 3, n)
    return pd.DataFrame(
        {
            "age": rng.uniform(20, 79, n),
            "height": np.where(sex == 1, 176, 162) + rng.normal(0, 5, n),
            "sex": sex,
        }
    )


def one(curves: int, steps: int, partition: int) -> dict[str, float]:
    """Write a cohort of so many curves to a temporary folder; its time, memory and size."""
    import torch

    from spiro_diffusion.generation.drawing import load_models
    from spiro_diffusion.generation.partitions import generate_partitions

    load_models()
    base, began, worked = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        time.perf_counter(),
        time.process_time(),
    )
    with tempfile.TemporaryDirectory() as folder:
        made = generate_partitions(
            people(curves // DRAWS),
            Path(folder) / "cohort",
            DrawSettings(draws=DRAWS, steps=steps),
            partition,
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        size = sum(p.stat().st_size for p in made.iterdir())
    return {
        "curves": curves, "seconds": seconds, "cpu_seconds": cpu, "cpu_ms_per_curve": 1000 * cpu / curves, "threads": torch.get_num_threads(),
        "base_MB": base, "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "file_MB": size / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--million", action="store_true", help="1,000,000 curves as well")
    parser.add_argument(
        "--steps",
        type=int,
        default=DrawSettings().steps,
        help="falls of the noise level a curve (those of the default sampler)",
    )
    parser.add_argument("--partition", type=int, default=5000, help="curves a file")
    parser.add_argument(
        "--again", action="store_true", help="draw sizes that are in the results as well"
    )
    parser.add_argument("--curves", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", default=str(Path(__file__).parent / "results" / "cohort_growth.json")
    )
    args = parser.parse_args()
    if args.curves is not None:
        print(json.dumps(one(args.curves, args.steps, args.partition)))
        return
    name, runs = f"steps_{args.steps}", read_json(args.out) if Path(args.out).is_file() else {}
    settings = {
        "partition": args.partition,
        "draws": DRAWS,
        "weights_sha256": sha256_of(shipped_weights("cldm") / "model.safetensors"),
    }
    old = runs.get(name, {})
    rows = [] if args.again or {k: old.get(k) for k in settings} != settings else old["sizes"]
    for curves in [1000, 10_000, 100_000] + [1_000_000] * args.million:
        if curves in [row["curves"] for row in rows]:
            continue
        call = [
            sys.executable,
            __file__,
            "--curves",
            str(curves),
            "--steps",
            str(args.steps),
            "--partition",
            str(args.partition),
        ]
        rows.append(
            json.loads(subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout)
        )
        write_json(
            args.out,
            runs | {name: settings | {"sizes": sorted(rows, key=lambda row: row["curves"])}},
        )
        print(pd.DataFrame(rows).round(2).to_string(index=False), "\n", flush=True)


if __name__ == "__main__":
    main()
