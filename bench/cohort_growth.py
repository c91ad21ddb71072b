"""How time and memory grow with a cohort written in partitions: 1,000, 10,000 and 100,000 curves, each in a process of its own.

    .venv/bin/python bench/cohort_growth.py [--million] [--steps 12] [--partition 5000]

Writes bench/results/cohort_growth.json and prints a table. Peak memory is the process's largest resident set;
`base` is the same process with the models loaded and nothing drawn.
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

from spiro_diffusion.common import read_json, write_json

DRAWS = 20


def people(n: int) -> pd.DataFrame:
    """n patients of 20 to 79 years."""
    rng = np.random.default_rng(0)
    sex = rng.integers(1, 3, n)
    return pd.DataFrame({"age": rng.uniform(20, 79, n), "height": np.where(sex == 1, 176, 162) + rng.normal(0, 5, n), "sex": sex})


def one(curves: int, steps: int, partition: int) -> dict[str, float]:
    """Write a cohort of so many curves to a temporary folder; its time, memory and size."""
    from spiro_diffusion.inference import DrawSettings, load_models
    from spiro_diffusion.scale import generate_partitions

    load_models()
    base, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter()
    size = 0
    with tempfile.TemporaryDirectory() as folder:
        if curves:
            made = generate_partitions(people(curves // DRAWS), Path(folder) / "cohort", DrawSettings(draws=DRAWS, steps=steps), partition)
            size = sum(p.stat().st_size for p in made.iterdir())
    seconds = time.perf_counter() - began
    return {"curves": curves, "seconds": seconds, "curves_per_second": curves / seconds, "base_MB": base, "peak_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "file_MB": size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true", help="1,000,000 curves as well")
    parser.add_argument("--steps", type=int, default=12, help="network calls a curve")
    parser.add_argument("--partition", type=int, default=5000, help="curves a file")
    parser.add_argument("--curves", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "cohort_growth.json"))
    args = parser.parse_args()
    if args.curves is not None:
        print(json.dumps(one(args.curves, args.steps, args.partition)))
        return
    rows = []
    for curves in [1000, 10_000, 100_000] + [1_000_000] * args.million:
        call = [sys.executable, __file__, "--curves", str(curves), "--steps", str(args.steps), "--partition", str(args.partition)]
        rows.append(json.loads(subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout))
        print(pd.DataFrame(rows).round(1).to_string(index=False), "\n")
    runs = read_json(args.out) if Path(args.out).is_file() else {}
    write_json(args.out, runs | {f"steps_{args.steps}": {"partition": args.partition, "draws": DRAWS, "sizes": rows}})


if __name__ == "__main__":
    main()
