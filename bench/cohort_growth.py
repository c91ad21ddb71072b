"""How time and memory grow with a cohort written in partitions: 1,000 curves to a million.

    OMP_NUM_THREADS=1 python bench/cohort_growth.py [--largest 1000000] [--workers 2]

Each size is drawn in a process of its own. Growth is straight if the processor's time for a curve
is the same at every size: `fit` is the line of seconds over curves with the smallest relative
errors, and `largest_over_ten_thousand` compares the time for a curve, and the peak memory, of the
largest cohort and of that of 10,000. Time on the clock is that of a machine that may have been
shared. Peak memory is the process's largest resident set, `base` that of the same process with the
models loaded and nothing drawn.

--workers N: one cohort of --shared curves is also written by one Dask worker and by N, of one
thread each, which have the models loaded and have drawn before; `times_one_worker` is how many
times as fast N are. `grown_MB` is how much the largest worker's peak memory rose from a cohort of
one partition a worker to the whole.

Writes bench/results/cohort_growth.json after each size and prints a table; sizes that are there,
with the weights that come with the package, are not drawn again (--again: they are).
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
SIZES = [1000, 10_000, 100_000, 1_000_000]
"""Curves of a cohort; those up to --largest."""
COMPARED = 10_000
"""Curves of the cohort with which the largest is compared."""


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


def fit_of(rows: list[dict[str, float]]) -> dict[str, float] | None:
    """The line of the processor's seconds over curves, the relative errors squared least.

    `misfit` is the largest relative error. None of fewer than two sizes.
    """
    if len(rows) < 2:
        return None
    curves = np.array([row["curves"] for row in rows])
    seconds = np.array([row["cpu_seconds"] for row in rows])
    terms = np.stack([1 / seconds, curves / seconds], axis=1)
    (start, slope), *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    misfit = np.abs(terms @ (start, slope) - 1).max()
    return {"start_s": start, "ms_per_curve": 1000 * slope, "misfit": misfit}


def largest_over_compared(rows: list[dict[str, float]]) -> dict[str, float] | None:
    """Time for a curve and peak memory of the largest cohort over those of `COMPARED` curves."""
    there = [row for row in rows if row["curves"] == COMPARED]
    largest = rows[-1]
    if not there or largest["curves"] <= COMPARED:
        return None
    return {name: largest[name] / there[0][name] for name in ("cpu_ms_per_curve", "peak_MB")}


def ready() -> dict[str, Any]:
    """Draw the first curves of a worker; its number of torch's threads."""
    import torch

    from spiro_diffusion.inference import generate

    generate(some_patients(1), DRAWS)
    return {"threads": torch.get_num_threads()}


def by_workers(count: int, curves: int, steps: int, partition: int) -> dict[str, Any]:
    """Time and memory of one cohort that so many Dask workers of one thread write."""
    from dask.distributed import Client, LocalCluster

    from spiro_diffusion.generation.partitions import generate_partitions

    how = DrawSettings(draws=DRAWS, steps=steps)
    cluster = LocalCluster(
        n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, Client(cluster) as client, tempfile.TemporaryDirectory() as folder:
        threads = [worker["threads"] for worker in client.run(ready).values()]
        first = some_patients(max(count * partition // DRAWS, 1))
        generate_partitions(first, Path(folder) / "first", how, partition, client)
        before = max(client.run(largest_memory).values())
        clock = time.perf_counter()
        people = some_patients(curves // DRAWS)
        generate_partitions(people, Path(folder) / "cohort", how, partition, client)
        seconds = time.perf_counter() - clock
        after = max(client.run(largest_memory).values())
    return {
        "workers": count,
        "torch_threads": max(threads),
        "curves": curves,
        "partitions": -(-curves // partition),
        "seconds": seconds,
        "curves_per_s": curves / seconds,
        "peak_MB": after,
        "grown_MB": after - before,
    }


def shared_out(count: int, curves: int, steps: int, partition: int) -> dict[str, Any]:
    """The cohort written by one worker and by so many."""
    rows = [by_workers(workers, curves, steps, partition) for workers in (1, count)]
    return {"rows": rows, "times_one_worker": rows[0]["seconds"] / rows[1]["seconds"]}


def sizes_there(run: dict[str, Any], settings: dict[str, Any]) -> list[dict[str, float]]:
    """The sizes of an earlier run, if it was made with the same settings."""
    same = all(run.get(name) == value for name, value in settings.items())
    return run.get("sizes", []) if same else []


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--largest", type=int, default=100_000, help="curves of the largest cohort (100,000)"
    )
    parser.add_argument("--workers", type=int, default=0, help="Dask workers, beside one (none)")
    parser.add_argument(
        "--shared", type=int, default=20_000, help="curves that workers share (20,000)"
    )
    parser.add_argument(
        "--shared-partition", type=int, default=1000, help="curves a file of theirs (1,000)"
    )
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
    run = settings | {"sizes": rows}
    if rows and "workers" in runs[name]:
        run["workers"] = runs[name]["workers"]
    for curves in [size for size in SIZES if size <= args.largest] or [args.largest]:
        if curves in [row["curves"] for row in rows]:
            continue
        rows.append(in_own_process(curves, args.steps, args.partition))
        rows.sort(key=lambda row: row["curves"])
        run |= {"fit": fit_of(rows), "largest_over_ten_thousand": largest_over_compared(rows)}
        write_json(args.out, runs | {name: run})
        print(pd.DataFrame(rows).round(2).to_string(index=False), "\n", flush=True)
    if args.workers:
        run["workers"] = shared_out(args.workers, args.shared, args.steps, args.shared_partition)
        write_json(args.out, runs | {name: run})
        print(pd.DataFrame(run["workers"]["rows"]).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
