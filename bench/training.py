"""A training step on two cores, alone and while another program holds one of them.

    python bench/training.py [--rounds 3] [--seconds 4] [--batch 128]

The steps of the diffusion model and of the codec as `train` takes them (loss, gradient, optimiser,
averaged weights, what is noted), on made-up rows. `WAYS` are the ways in which threads wait for one
another; each is a process of its own, since OpenMP reads how to wait when torch is loaded, and they
take turns. The other program is a loop that does nothing. Medians over the rounds of the time on
the clock. Run it on an idle machine. Writes bench/results/training.json.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from spiro_diffusion.base.files import write_json

RESULTS = Path(__file__).parent / "results" / "training.json"
WAYS = {
    "spinning (torch as it comes)": {},
    "sleeping (commands, beside others)": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Variables of the environment, by what they are good for."""
USUAL = "spinning (torch as it comes)"
MODELS = ("diffusion model", "codec")
VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
ROWS = 2048  # made-up rows that batches are taken from
FIRST = 3  # steps that do not count
BUSY = "while True: pass"


def measure(name: str, batch: int, seconds: float) -> float:
    """Milliseconds a training step of the model called `name`, in this process."""
    import torch

    from spiro_diffusion import cldm, vqvae
    from spiro_diffusion.learning.curves import formula_blows
    from spiro_diffusion.learning.training import train

    torch.manual_seed(0)
    if name == "codec":
        settings = vqvae.settings_for("default")
        data = (torch.from_numpy(formula_blows(ROWS)).float(),)
        model = vqvae.VQVAE(settings.model)
        model.fit(data[0])
        loss = vqvae.codec_loss
    else:
        settings = cldm.settings_for("default")
        latents = torch.randn(ROWS, settings.channels, settings.positions)
        model = cldm.new_model(settings, latents)
        data = (latents, torch.ones(ROWS, len(settings.variables)))
        loss = cldm.edm_loss

    begun: list[float] = []  # when each step began

    def timed_loss(model: Any, rows: Any, generator: Any, step: int) -> Any:
        begun.append(time.perf_counter())
        if len(begun) > FIRST + 1 and begun[-1] - begun[FIRST] > seconds:
            raise KeyboardInterrupt
        return loss(model, rows, generator, step)

    config = replace(settings.train, steps=10**6, batch=batch, device="cpu")
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        train(model, timed_loss, data, config, folder)
    return 1000 * (begun[-1] - begun[FIRST]) / (len(begun) - 1 - FIRST)


def elsewhere(name: str, way: dict[str, str], args: argparse.Namespace) -> float:
    """`measure` in a process of its own, whose threads wait in this way."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [sys.executable, __file__, "--measure", name]
    command += ["--seconds", str(args.seconds), "--batch", str(args.batch)]
    done = subprocess.run(
        command, env={**kept, **way, "TQDM_DISABLE": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1]))


def all_rounds(name: str, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each round by way, then by "alone" or "core taken"."""
    found = {way: {"alone": [], "core taken": []} for way in WAYS}
    for _ in range(args.rounds):
        for way, environment in WAYS.items():
            found[way]["alone"].append(elsewhere(name, environment, args))
        busy = subprocess.Popen([sys.executable, "-c", BUSY])
        try:
            for way, environment in WAYS.items():
                found[way]["core taken"].append(elsewhere(name, environment, args))
        finally:
            busy.kill()
            busy.wait()
        print(name, found, flush=True)
    return found


def rows_of(name: str, found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row a way: medians, and as ratios to the usual way alone."""
    usual = statistics.median(found[USUAL]["alone"])
    rows = []
    for way, times in found.items():
        alone = statistics.median(times["alone"])
        taken = statistics.median(times["core taken"])
        rows.append(
            {
                "model": name,
                "threads": way,
                "ms_alone": alone,
                "ms_core_taken": taken,
                "alone_over_usual": alone / usual,
                "core_taken_over_alone": taken / alone,
                "core_taken_over_usual": taken / usual,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--seconds", type=float, default=4, help="of steps in each process (4)")
    parser.add_argument("--batch", type=int, default=128, help="rows of a batch (128)")
    parser.add_argument("--measure", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="results go here")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.batch, args.seconds)))
        return
    rows = []
    for name in MODELS:
        rows += rows_of(name, all_rounds(name, args))
    write_json(
        args.out,
        {"batch": args.batch, "rounds": args.rounds, "cores": os.cpu_count(), "rows": rows},
    )


if __name__ == "__main__":
    main()
