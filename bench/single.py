"""How long one patient waits: a curve, a redraw of the explorer, the first curve from the shell.

    python bench/single.py [--repeats 20] [--threads 1]

Medians, with the slowest, of the processor's time and of time on the clock; the shell's is time on
the clock of a whole process. Writes bench/results/single.json.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spiro_diffusion.apps.explorer import Explorer, Wish
from spiro_diffusion.base.files import write_json
from spiro_diffusion.generation.drawing import load_models
from spiro_diffusion.inference import generate

RESULTS = Path(__file__).parent / "results" / "single.json"
PATIENT = {"age": 45, "height": 175, "sex": "male"}
SHELL_REPEATS = 3
"""Each takes seconds: Python and torch are loaded anew."""


def timed(what: str, call: Callable[[int], object], repeats: int) -> dict[str, Any]:
    """A row of the table: milliseconds of `call(k)` for k = 0, 1, ...

    A first call does not count.
    """
    call(repeats)
    cpu_ms = []
    clock_ms = []
    for k in range(repeats):
        cpu = time.process_time()
        clock = time.perf_counter()
        call(k)
        cpu_ms.append(1000 * (time.process_time() - cpu))
        clock_ms.append(1000 * (time.perf_counter() - clock))
    row = {
        "what": what,
        "cpu_ms": statistics.median(cpu_ms),
        "ms": statistics.median(clock_ms),
        "slowest_ms": max(clock_ms),
        "times": repeats,
    }
    print(row, flush=True)
    return row


def patient_never_shown(k: int) -> Wish:
    """The k-th of many patients whose ages and heights all differ."""
    return Wish(
        age=8 + 3 * (k % 23),
        height=125 + 5 * (k % 13) + k // 13,
        sex="female" if k % 2 else "male",
    )


def in_this_process(repeats: int) -> list[dict[str, Any]]:
    """Rows for a curve and for redraws of the explorer, with the weights loaded."""
    models = load_models()
    explorer = Explorer(models)

    def one_curve(k: int) -> None:
        generate(PATIENT, seed=k, models=models)

    def another_patient(k: int) -> None:
        explorer.show(patient_never_shown(k))

    def another_ratio(k: int) -> None:
        explorer.show(Wish(fev1_fvc_z=-0.2 * k, guidance=2.0))

    return [
        timed("generate, one curve, weights loaded", one_curve, repeats),
        timed("explorer, an age and height never shown before", another_patient, repeats),
        timed("explorer, FEV1/FVC at another z-score, guidance 2", another_ratio, repeats),
    ]


def from_the_shell() -> dict[str, Any]:
    """The row for the command; its processor's time is another process's and not known."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-c"]
        call += ["import sys; from spiro_diffusion.apps.generate import main; sys.exit(main())"]
        call += ["--age", "45", "--height", "175", "--sex", "male"]
        call += ["--overwrite", "--out", f"{folder}/one.parquet"]

        def command(_: int) -> None:
            subprocess.run(call, check=True, capture_output=True)

        row = timed("spiro_generate, one curve, from the shell", command, SHELL_REPEATS)
    return row | {"cpu_ms": None}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20, help="calls of each kind (20)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [*in_this_process(args.repeats), from_the_shell()]
    write_json(RESULTS, {"threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
