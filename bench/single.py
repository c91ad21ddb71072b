"""How long one patient waits: a curve, a redraw of the explorer, the first curve from the shell.

    python bench/single.py [--repeats 20] [--threads 1]

Medians, with the slowest, of the processor's time and the clock's; the shell's is the clock's of a whole process.
Writes bench/results/single.json.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from spiro_diffusion.apps.explorer import Explorer, Wish
from spiro_diffusion.base.files import write_json
from spiro_diffusion.generation.drawing import load_models
from spiro_diffusion.inference import generate


def timed(what: str, call: Callable[[int], object], repeats: int) -> dict[str, object]:
    """A row of the table: milliseconds of `call(k)` for k = 0, 1, ... after a first call that does not count."""
    call(repeats)
    worked, took = [], []
    for k in range(repeats):
        cpu, clock = time.process_time(), time.perf_counter()
        call(k)
        (
            worked.append(1000 * (time.process_time() - cpu)),
            took.append(1000 * (time.perf_counter() - clock)),
        )
    row = {
        "what": what,
        "cpu_ms": statistics.median(worked),
        "ms": statistics.median(took),
        "slowest_ms": max(took),
        "times": repeats,
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models, who = load_models(), {"age": 45, "height": 175, "sex": "male"}
    explorer = Explorer(models)
    rows = [
        timed(
            "generate, one curve, weights loaded",
            lambda k: generate(who, seed=k, models=models),
            args.repeats,
        ),
        timed(
            "explorer, an age and height never shown before",
            lambda k: explorer.show(
                Wish(
                    age=8 + 3 * (k % 23),
                    height=125 + 5 * (k % 13) + k // 13,
                    sex=("male", "female")[k % 2],
                )
            ),
            args.repeats,
        ),
        timed(
            "explorer, FEV1/FVC at another z-score, guidance 2",
            lambda k: explorer.show(Wish(fev1_fvc_z=-0.2 * k, guidance=2.0)),
            args.repeats,
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            sys.executable,
            "-c",
            "import sys; from spiro_diffusion.commands import main; sys.exit(main())",
            "--age",
            "45",
            "--height",
            "175",
            "--sex",
            "male",
            "--overwrite",
            "--out",
            f"{folder}/one.parquet",
        ]
        took = timed(
            "spiro_generate, one curve, from the shell",
            lambda k: subprocess.run(argv, check=True, capture_output=True),
            3,
        )
    write_json(
        Path(__file__).parent / "results" / "single.json",
        {"threads": args.threads, "rows": [*rows, took | {"cpu_ms": None}]},
    )


if __name__ == "__main__":
    main()
