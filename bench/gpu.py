"""What one GPU does: sampling, `generate` and training a second, and how near it is to the CPU.

    python bench/gpu.py [--device cuda] [--minutes 5] [--toy] [--out FILE]

One run of at most five minutes on an H100 or H200, with the weights that come with the package.
Sampling alone is the U-Net's calls and the decoder, from noise that is on the device; `generate` is
everything from a table of patients to curves, indices and z-scores. Differences are those from the
CPU for the same seed. Training is that of both networks on numbers of the right shape: through
`learning.training.train`, from the difference between a longer and a shorter run, and the step
alone, on one batch and without the loop. A part that fails, or for which no time is left, is
recorded with its reason.

Writes bench/results/gpu.json where a GPU was used; --out names another file. --toy with --device
cpu runs all of it at a size that shows nothing but that it works.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cohort_growth import DRAWS, some_patients
from torch import Tensor, nn

from spiro_diffusion import cldm, vqvae
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import write_json
from spiro_diffusion.generation.drawing import (
    DEFAULT_CONDITIONS,
    DrawSettings,
    Models,
    draw_rows,
    load_models,
    requested_patients,
    version_of,
)
from spiro_diffusion.inference import generate
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.learning.curves import formula_blows
from spiro_diffusion.learning.devices import device_for
from spiro_diffusion.learning.noise import full_float32, starting_noise
from spiro_diffusion.learning.training import LossFn, TrainConfig, machine_name, train
from spiro_diffusion.spirometry.indices import INDICES, indices_on_clock
from spiro_diffusion.spirometry.quality import measure_on_clock
from spiro_diffusion.spirometry.reference import zscores

RESULTS = Path(__file__).parent / "results" / "gpu.json"
REPEATS = 3
SEED = 0
CURVES_GOAL = 50_000  # curves/s of `generate`
STEPS_GOAL = 100  # training steps/s of the cLDM at the first batch size
DIFFERENCE_GOAL = 1e-3  # L/s, between CPU and GPU


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    sampled: int  # curves at once, in sampling alone
    cohorts: tuple[tuple[int, int], ...]  # curves of `generate`, and its batch
    staged: tuple[int, int]  # curves and batch of which each stage is timed
    compared: int  # curves of CPU and device
    profile: str  # of the networks that are trained
    rows: int  # that are trained on
    batches: tuple[int, ...]  # rows a training step
    steps: tuple[int, int]  # of the shorter and the longer run
    backend: str  # of torch.compile


FULL = Sizes(
    sampled=8192,
    cohorts=((10_000, 256), (10_000, 2048), (10_000, 8192), (100_000, 2048), (100_000, 8192)),
    staged=(10_000, 8192),
    compared=1000,
    profile="paper",
    rows=16_384,
    batches=(512, 2048),
    steps=(50, 200),
    backend="inductor",
)
TOY = Sizes(
    sampled=20,
    cohorts=((40, 20),),
    staged=(40, 20),
    compared=40,
    profile="smoke",
    rows=256,
    batches=(64,),
    steps=(2, 4),
    backend="eager",
)


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Median time of a call, the device's work included; a first call does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        finish(device)
        start = time.perf_counter()
        call()
        finish(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@contextmanager
def tf32() -> Iterator[None]:
    """Inside, a GPU may round the factors of products to 10 bits (TF32)."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "tf32"
    try:
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def differences(made: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far curves (N, 512) L/s are from those of the CPU at most: flow in L/s, FVC in mL."""
    fvc = indices_on_clock(made)["fvc"] - indices_on_clock(reference)["fvc"]
    return {
        "difference_L_per_s": float(np.abs(made - reference).max()),
        "difference_fvc_mL": float(1000 * fvc.abs().max()),
    }


Curves = Callable[[Tensor], Tensor]
"""Noise (N, C, P) to flow (N, 512) L/s."""


@dataclass(frozen=True)
class Sampling:
    """What every way of sampling is given: models on a device, people and noise, and the truth."""

    models: Models
    values: Tensor  # (N, K) clinical values
    noise: Tensor  # (N, C, P)
    reference: np.ndarray  # (N, 512) L/s, of the CPU

    def plain(self, models: Models | None = None) -> Curves:
        """Curves of the models as they are, or of others."""
        used = models or self.models
        steps = DrawSettings().steps

        @torch.no_grad()
        def curves(noise: Tensor) -> Tensor:
            return used.decode(cldm.sample(used.cldm.denoiser(self.values), noise, steps))

        return curves

    def compiled(self, backend: str) -> Curves:
        """Curves of models whose network and decoder went through torch.compile."""
        models = deepcopy(self.models)
        models.cldm.guess = torch.compile(models.cldm.guess, backend=backend)
        models.vqvae.decoder.compile(backend=backend)
        return self.plain(models)

    def recorded(self) -> Curves:
        """Curves from one CUDA graph of all that the device does. Raises RuntimeError elsewhere."""
        if self.noise.device.type != "cuda":
            raise RuntimeError("a CUDA graph needs a CUDA device")
        curves = self.plain()
        given = self.noise.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(REPEATS):
                curves(given)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = curves(given)

        def replayed(noise: Tensor) -> Tensor:
            given.copy_(noise)
            graph.replay()
            return made

        return replayed

    def measured(self, name: str, make: Callable[[], Curves]) -> dict[str, Any]:
        """A row of the table: a way of sampling, its speed and its differences."""
        device = self.noise.device
        start = time.perf_counter()
        curves = make()
        first = curves(self.noise).float().cpu().numpy()
        ready = time.perf_counter() - start
        seconds = seconds_of(lambda: curves(self.noise), device)
        return {
            "what": name,
            "batch": len(first),
            "curves_per_s": len(first) / seconds,
            "first_call_s": ready,
            **differences(first, self.reference),
        }


def people_and_noise(models: Models, curves: int) -> tuple[Tensor, Tensor]:
    """Clinical values (N, K) and unit noise (N, C, P), on the CPU."""
    settings = models.cldm.settings
    people = some_patients(curves).assign(**DEFAULT_CONDITIONS)
    values = torch.from_numpy(encode_patients(people, settings.variables))
    generator = torch.Generator().manual_seed(SEED)
    return values, torch.randn(curves, settings.channels, settings.positions, generator=generator)


def sampling_on(device: torch.device, curves: int) -> Sampling:
    """Models, people and noise on a device, and the curves of the CPU."""
    models = load_models()
    values, noise = people_and_noise(models, curves)
    truth = Sampling(models, values, noise, np.empty(0)).plain()(noise).numpy()
    models = deepcopy(models)
    models.move_to(device)
    return Sampling(models, values.to(device), noise.to(device), truth)


def same_cohort(device: torch.device, curves: int) -> dict[str, Any]:
    """How far the same cohort of CPU and device is apart.

    Numbers are of the first draws. Of the cohort with redraws, how many curves are others: those
    that one of the two accepted and the other drew again.
    """
    models = load_models()
    people = some_patients(curves // DRAWS)
    first = {}
    whole = {}
    for where in (torch.device("cpu"), device):
        drawn = [
            generate(people, DRAWS, SEED, models=models, device=str(where), redraws=redraws)
            for redraws in (0, DrawSettings().redraws)
        ]
        first[where], whole[where] = (cohort.flow for cohort in drawn)
    apart = np.abs(whole[device] - whole[torch.device("cpu")]).max(1)
    return {
        "curves": len(apart),
        **differences(first[device], first[torch.device("cpu")]),
        "others": int((apart > 100 * DIFFERENCE_GOAL).sum()),
    }


def cohort_row(models: Models, device: torch.device, curves: int, batch: int) -> dict[str, Any]:
    """`generate` from a table of patients to curves, indices and z-scores."""
    people = some_patients(curves // DRAWS)

    def whole() -> None:
        generate(people, DRAWS, SEED, models=models, device=str(device), batch=batch)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(whole, device, 1)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return {
        "curves": curves,
        "batch": batch,
        "seconds": seconds,
        "curves_per_s": curves / seconds,
        "device_GB": memory,
    }


def stages(models: Models, device: torch.device, curves: int, batch: int) -> dict[str, Any]:
    """Seconds of each stage of `generate`, done alone on rows of the same size, and of all."""
    how = DrawSettings(draws=DRAWS, seed=SEED)
    settings = models.cldm.settings
    shape = (settings.channels, settings.positions)
    models.move_to(device)
    table = requested_patients(some_patients(curves // DRAWS), how, settings)
    rows = table.loc[table.index.repeat(DRAWS)].reset_index(drop=True)
    draws = np.arange(curves) % DRAWS
    people = rows.assign(draw=draws, sex=rows["sex"].map({1: "male", 2: "female"}))

    def noise() -> Tensor:
        return starting_noise(rows["patient"], draws, SEED, shape, device=device)

    def conditions() -> Tensor:
        full = rows.assign(**DEFAULT_CONDITIONS)
        return torch.from_numpy(encode_patients(full, settings.variables)).to(device)

    values = conditions().split(batch)
    unit = noise().split(batch)

    @torch.no_grad()
    def network() -> list[Tensor]:
        parts = zip(values, unit, strict=True)
        return [cldm.sample(models.cldm.denoiser(v), x, how.steps) for v, x in parts]

    latents = network()

    @torch.no_grad()
    def decoder() -> np.ndarray:
        return np.concatenate([models.decode(part).cpu().numpy() for part in latents])

    flow = decoder()
    measured = people.join(indices_on_clock(flow)[list(INDICES)])
    calls: dict[str, Callable[[], Any]] = {
        "patients": lambda: requested_patients(some_patients(curves // DRAWS), how, settings),
        "noise": noise,
        "conditions": conditions,
        "network": network,
        "decoder, to the host": decoder,
        "indices and acceptability": lambda: measure_on_clock(flow),
        "z-scores and table": lambda: measured.join(zscores(measured, check_units=False)),
        "all, redraws included": lambda: draw_rows(
            table, how, models, device, batch=batch, progress=False
        ),
    }
    seconds = {name: seconds_of(call, device, 1) for name, call in calls.items()}
    return {"curves": curves, "batch": batch, "seconds": seconds}


@dataclass(frozen=True)
class Training:
    """A network that can be trained: new, with its loss and the tensors it is trained on."""

    name: str
    model: nn.Module
    loss: LossFn
    data: tuple[Tensor, ...]


def denoiser_to_train(models: Models, sizes: Sizes) -> Training:
    """The cLDM on normal latents of simulated people."""
    shipped = models.cldm.settings
    values, latents = people_and_noise(models, sizes.rows)
    profile = cldm.settings_for(sizes.profile, SEED)
    known = {"variables": shipped.variables, "mean": shipped.mean, "std": shipped.std}
    known |= {"channels": shipped.channels, "positions": shipped.positions}
    model = cldm.new_model(replace(profile, **known), latents)
    return Training("cLDM", model, cldm.edm_loss, (latents, values))


def codec_to_train(sizes: Sizes) -> Training:
    """The codec on curves of a formula."""
    flow = torch.from_numpy(formula_blows(sizes.rows))
    model = vqvae.VQVAE(vqvae.settings_for(sizes.profile).model)
    model.fit(flow)
    return Training("codec", model, vqvae.codec_loss, (flow,))


def steps_through_train(
    what: Training, device: torch.device, batch: int, steps: tuple[int, int], replayed: bool = False
) -> float:
    """Steps a second of `train`: what a longer run does beyond a shorter one.

    replayed: as a CUDA graph. Raises RuntimeError where steps were not replayed. Where chance makes
    the shorter one last longer: the longer one's own, beginning and all.
    """
    seconds = []
    for length in steps:
        config = TrainConfig(
            steps=length, batch=batch, device=str(device), seed=SEED, replayed=replayed
        )
        model = deepcopy(what.model)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            history = train(model, what.loss, what.data, config, folder)
            finish(device)
            if replayed and not history["replayed"]:
                raise RuntimeError("the steps could not be replayed")
            seconds.append(time.perf_counter() - start)
    shorter, longer = seconds
    if longer <= shorter:
        return steps[1] / longer
    return (steps[1] - steps[0]) / (longer - shorter)


def steps_alone(what: Training, device: torch.device, batch: int, steps: int) -> float:
    """Steps a second of loss, gradient and optimiser on one batch that is on the device."""
    model = deepcopy(what.model).to(device).train()
    rows = tuple(part[:batch].to(device) for part in what.data)
    generator = torch.Generator(device).manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def some_steps() -> None:
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            what.loss(model, rows, generator, step)[0].backward()
            optimizer.step()

    return steps / seconds_of(some_steps, device, 1)


def training_row(what: Training, device: torch.device, batch: int, sizes: Sizes) -> dict[str, Any]:
    """A row of the table: a network at one batch size."""
    return {
        "network": what.name,
        "batch": batch,
        "steps_per_s": steps_through_train(what, device, batch, sizes.steps),
        "steps_per_s_alone": steps_alone(what, device, batch, sizes.steps[0]),
    }


def replayed_row(what: Training, device: torch.device, batch: int, sizes: Sizes) -> dict[str, Any]:
    """A network at one batch size, whose steps are replayed as a CUDA graph."""
    return {"steps_per_s": steps_through_train(what, device, batch, sizes.steps, replayed=True)}


def driver() -> str | None:
    """The version of NVIDIA's driver, if there is one."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    call = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() or None


def machine(device: torch.device) -> dict[str, Any]:
    """The device, and the versions of what runs on it."""
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
    return {
        "device": machine_name(device),
        "device_type": device.type,
        "versions": {
            "spiro-diffusion": version_of("spiro-diffusion"),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "cuDNN": cudnn,
            "driver": driver() if device.type == "cuda" else None,
            "Python": platform.python_version(),
        },
    }


def goal_row(what: str, goal: float, measured: float | None, met: bool) -> dict[str, Any]:
    """What was aimed at beside what was measured, None where it was not."""
    return {"what": what, "goal": goal, "measured": measured, "met": met}


def goals(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The aims: curves and training steps a second, and the difference from the CPU."""
    rates = [row["curves_per_s"] for row in record["generate"] if "failed" not in row]
    trained = [row for row in record["training"] if row["network"] == "cLDM"]
    curves = max(rates, default=None)
    same = [row for row in [*trained, *record["replayed"]] if row["network"] == "cLDM"]
    same = [row for row in same if row["batch"] == trained[0]["batch"] and "steps_per_s" in row]
    steps = max((row["steps_per_s"] for row in same), default=None)
    apart = record["same_cohort"].get("difference_L_per_s")
    return [
        goal_row("generate, curves/s", CURVES_GOAL, curves, (curves or 0) >= CURVES_GOAL),
        goal_row(
            f"training steps/s of the cLDM, batch {trained[0]['batch']}",
            STEPS_GOAL,
            steps,
            (steps or 0) >= STEPS_GOAL,
        ),
        goal_row(
            "largest difference from the CPU, L/s",
            DIFFERENCE_GOAL,
            apart,
            apart is not None and apart <= DIFFERENCE_GOAL,
        ),
    ]


class Recorder:
    """Runs the parts one after another and keeps what came of each, failures with their reason."""

    def __init__(self, minutes: float):
        self.begun = time.monotonic()
        self.until = self.begun + 60 * minutes

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.begun

    def part(
        self, what: dict[str, Any], measure: Callable[..., dict[str, Any]], *given: Any
    ) -> dict[str, Any]:
        """What `measure` found, or `what` it was and why it failed."""
        if time.monotonic() > self.until:
            row = what | {"failed": "no time was left"}
        else:
            try:
                row = measure(*given)
            except Exception as err:  # whatever a compiler or a driver says
                said = str(err).strip().splitlines()
                row = what | {"failed": f"{type(err).__name__}: {said[0] if said else ''}"[:300]}
        print(f"{self.seconds:6.1f} s  {row}", flush=True)
        return row


def everything(device: torch.device, sizes: Sizes, recorder: Recorder) -> dict[str, Any]:
    """All parts; what may leave the device in a bad state comes last."""
    models = load_models()
    task = sampling_on(device, sizes.sampled)

    def sampled(name: str, make: Callable[[], Curves], rounded: bool = False) -> dict[str, Any]:
        with tf32() if rounded else full_float32():
            return recorder.part({"what": name}, task.measured, name, make)

    sampling = [
        sampled("float32", task.plain),
        sampled("TF32 allowed", task.plain, rounded=True),
    ]
    record: dict[str, Any] = {
        "weights_sha256": models.sha256,
        "toy": sizes == TOY,
        "sampling": sampling,
        "same_cohort": recorder.part({}, same_cohort, device, sizes.compared),
        "generate": [],
        "training": [],
        "replayed": [],
    }
    for curves, batch in sizes.cohorts:
        what = {"curves": curves, "batch": batch}
        record["generate"].append(recorder.part(what, cohort_row, models, device, curves, batch))
    with full_float32():
        record["stages"] = recorder.part({}, stages, models, device, *sizes.staged)
    networks = (denoiser_to_train(models, sizes), codec_to_train(sizes))
    trainings = [(network, batch) for network in networks for batch in sizes.batches]
    for network, batch in trainings:
        what = {"network": network.name, "batch": batch}
        row = recorder.part(what, training_row, network, device, batch, sizes)
        record["training"].append(row)
    sampling.append(sampled("torch.compile", partial(task.compiled, sizes.backend)))
    sampling.append(sampled("CUDA graph", task.recorded))
    for network, batch in trainings:
        what = {"network": network.name, "batch": batch}
        row = recorder.part(what, replayed_row, network, device, batch, sizes)
        record["replayed"].append(row)
    return record | {"goals": goals(record), "seconds": recorder.seconds}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help='"cuda" (default), or "cpu" with --toy')
    parser.add_argument("--minutes", type=float, default=5, help="no part begins later (5)")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: only whether it works")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    return parser.parse_args(argv)


def main() -> None:
    args = arguments()
    recorder = Recorder(args.minutes)
    try:
        device = device_for(args.device)
    except DataError as err:
        raise SystemExit(str(err)) from err
    if device.type == "cpu" and not args.toy:
        raise SystemExit("the sizes are those of a GPU: give --toy on a CPU")
    about = machine(device)
    print(about, flush=True)
    record = about | everything(device, TOY if args.toy else FULL, recorder)
    print(pd.DataFrame(record["goals"]).to_string(index=False))
    out = args.out
    if out is None and device.type == "cuda" and not args.toy:
        out = RESULTS
    if out is not None:
        write_json(out, record)


if __name__ == "__main__":
    main()
