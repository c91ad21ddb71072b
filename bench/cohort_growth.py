"""How time and memory grow with a cohort written in partitions: 1,000, 10,000, 100,000 curves.

    OMP_NUM_THREADS=1 python bench/cohort_growth.py [--million] [--steps 5] [--partition 5000]

Each size is drawn in a process of its own. Writes bench/results/cohort_growth.json after each size
and prints a table; sizes that are there, with the weights that come with the package, are not
drawn again (--again: they are). Growth is straight if the processor's time for a curve is the same
at every size; time on the clock is that of a machine that may have been shared. Peak memory is the
process's largest resident set, `base` that of the same process with the models loaded and nothing
drawn.
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
from typing import Any

import numpy as np
import pandas as pd

from spiro_diffusion.base.files import read_json, sha256_of, shipped_weights, write_json
from spiro_diffusion.generation.drawing import DrawSettings

RESULTS = Path(__file__).parent / "results" / "cohort_growth.json"
DRAWS = 20
"""Curves of each patient."""
SIZES = [1000, 10_000, 100_000]
"""Curves of a cohort."""
MILLION = 1_000_000


def some_patients(n: int) -> pd.DataFrame:
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


def largest_memory() -> float:
    """The largest resident set of this process up to now, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(curves: int, steps: int, partition: int) -> dict[str, float]:
    """Time, memory and size of a cohort of so many curves, written to a temporary folder."""
    import torch

    from spiro_diffusion.generation.drawing import load_models
    from spiro_diffusion.generation.partitions import generate_partitions

    load_models()
    base = largest_memory()
    clock = time.perf_counter()
    cpu = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        cohort = generate_partitions(
            some_patients(curves // DRAWS),
            Path(folder) / "cohort",
            DrawSettings(draws=DRAWS, steps=steps),
            partition,
        )
        seconds = time.perf_counter() - clock
        cpu_seconds = time.process_time() - cpu
        size = sum(path.stat().st_size for path in cohort.iterdir())
    return {
        "curves": curves,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "cpu_ms_per_curve": 1000 * cpu_seconds / curves,
        "threads": torch.get_num_threads(),
        "base_MB": base,
        "peak_MB": largest_memory(),
        "file_MB": size / 1e6,
    }


def in_own_process(curves: int, steps: int, partition: int) -> dict[str, float]:
    """`measured` in a process of its own, whose memory nobody has used before."""
    call = [sys.executable, __file__, "--curves", str(curves)]
    call += ["--steps", str(steps), "--partition", str(partition)]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def sizes_there(run: dict[str, Any], settings: dict[str, Any]) -> list[dict[str, float]]:
    """The sizes of an earlier run, if it was made with the same settings."""
    same = all(run.get(name) == value for name, value in settings.items())
    return run["sizes"] if same else []


def arguments() -> argparse.Namespace:
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
    parser.add_argument("--curves", type=int, help=argparse.SUPPRESS)  # of `in_own_process`
    parser.add_argument("--out", default=str(RESULTS))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.curves is not None:
        print(json.dumps(measured(args.curves, args.steps, args.partition)))
        return
    settings = {
        "partition": args.partition,
        "draws": DRAWS,
        "weights_sha256": sha256_of(shipped_weights("cldm") / "model.safetensors"),
    }
    name = f"steps_{args.steps}"
    runs = read_json(args.out) if Path(args.out).is_file() else {}
    rows = [] if args.again else sizes_there(runs.get(name, {}), settings)
    for curves in [*SIZES, MILLION] if args.million else SIZES:
        if curves in [row["curves"] for row in rows]:
            continue
        rows.append(in_own_process(curves, args.steps, args.partition))
        rows.sort(key=lambda row: row["curves"])
        write_json(args.out, runs | {name: settings | {"sizes": rows}})
        print(pd.DataFrame(rows).round(2).to_string(index=False), "\n", flush=True)


if __name__ == "__main__":
    main()
