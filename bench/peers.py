"""This project's codec, U-Net and samplers beside peers from other packages, in one run.

    python bench/peers.py [--repeats 15] [--sampling-repeats 5] [--threads 1] [--shared]
                          [--device cuda [--bf16] [--compile]]

bench/README.md says how to install the peers; those that are not installed are left out, and named.
In each round every peer is timed right beside this project's, by turns before and after it: speeds
are of the median time, ratios the medians of the rounds' ratios. On the CPU with one thread time is
the processor's, which stands a busy machine; the clock's is noted too. Sampling is of 256 curves
with decoding, by this project's decoder for all; this project's whole generation also measures
indices and z-scores and, in one row, draws curves again that are not acceptable. Networks and
codecs of the peers are not trained: this says how fast they are, not how good. Writes
bench/results/peers.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from peer_models import CODECS, NETWORKS, OURS, Codec, Network, our_codec, our_network
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spiro_diffusion.base.files import write_json
from spiro_diffusion.generation.drawing import DrawSettings, Models, load_models
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.learning.training import Ema

Call = Callable[[], Any]
UNCONDITIONAL = " (unconditional)"
TRAINED = 128  # curves of a training step of the codecs
NETWORK_BATCHES = (64, 128)  # of a training step of the U-Nets
AIMS = {
    "sampling, each at its recommended settings": 8.0,
    "U-Net: training step": 1.0,
    "codec: training step": 1.0,
}
"""How many times as fast as the best peer this project should be."""


class Seconds(NamedTuple):
    """Time of one call."""

    counted: float  # of the processor if it is the CPU with one thread, else as `clock`
    clock: float  # of the clock, or of the GPU


def seconds(call: Call, device: str) -> Seconds:
    """Time one call."""
    if device == "cuda":
        began = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        began.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        took = began.elapsed_time(ended) / 1000
        return Seconds(took, took)
    began_cpu = time.process_time()
    began_clock = time.perf_counter()
    call()
    cpu = time.process_time() - began_cpu
    clock = time.perf_counter() - began_clock
    return Seconds(cpu if torch.get_num_threads() == 1 else clock, clock)


def without_gradient(call: Callable[..., Any], *inputs: Any) -> Call:
    """The call on these inputs, without gradients."""
    return torch.no_grad()(partial(call, *inputs))


def step_of(module: nn.Module, loss: Callable[..., Tensor], *data: Tensor) -> Call:
    """A step as `training.train` makes it: loss, gradients, clipping, AdamW, averaged weights."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    ema = Ema(module, 0.999)

    def step() -> None:
        value = loss(*data)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        ema.update(1000)

    return step


def mflop(call: Call, curves: int) -> float:
    """Million floating point operations (of matrix products and convolutions) a curve."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / curves / 1e6


@dataclass(frozen=True)
class Bench:
    """How things are timed."""

    device: str
    repeats: int
    sampling_repeats: int


@dataclass
class Task:
    """Calls that do the same, by name: this project's and the peers'."""

    name: str
    curves: int
    calls: dict[str, Call]
    sizes: dict[str, int]  # parameters

    @property
    def ours(self) -> list[str]:
        return [name for name in self.calls if name.startswith(OURS)]

    @property
    def peers(self) -> list[str]:
        return [name for name in self.calls if not name.startswith(OURS)]


@dataclass
class Times:
    """What was measured of the calls of a task."""

    taken: dict[str, list[Seconds]]
    ratios: dict[tuple[str, str], list[float]]  # a peer's time over ours, for each ours and peer

    def median(self, name: str) -> float:
        return statistics.median(each.counted for each in self.taken[name])

    def on_the_clock(self, name: str) -> float:
        return statistics.median(each.clock for each in self.taken[name])

    def ratio(self, ours: str, peer: str) -> float:
        return round(statistics.median(self.ratios[ours, peer]), 3)


def take_turns(task: Task, repeats: int, device: str) -> Times:
    """Time each peer beside this project's calls, in the other order every second round."""
    times = Times({name: [] for name in task.calls}, {})
    rivals = [[peer] for peer in task.peers] or [[]]
    for turn in range(repeats):
        for rival in rivals:
            group = [*task.ours, *rival]
            if turn % 2:
                group.reverse()
            now = {name: seconds(task.calls[name], device) for name in group}
            for name, taken in now.items():
                times.taken[name].append(taken)
            for ours, peer in product(task.ours, rival):
                ratio = now[peer].counted / now[ours].counted
                times.ratios.setdefault((ours, peer), []).append(ratio)
    return times


def compare(task: Task, repeats: int, device: str) -> dict[str, Any]:
    """A row for each call: speed, and how many times as fast as it each of ours is."""
    flops = {
        name: mflop(call, task.curves) for name, call in task.calls.items()
    }  # warms up as well
    times = take_turns(task, repeats, device)
    rows = []
    for name in [*task.ours, *task.peers]:
        ratios = None
        if name in task.peers:
            ratios = {ours: times.ratio(ours, name) for ours in task.ours}
        rows.append(
            {
                "name": name,
                "parameters": task.sizes[name],
                "mflop_per_curve": round(flops[name], 2),
                "ms": round(1000 * times.median(name), 3),
                "ms_on_the_clock": round(1000 * times.on_the_clock(name), 3),
                "curves_per_s": round(task.curves / times.median(name), 1),
                "ours_over_this": ratios,
            }
        )
    winner = min(task.calls, key=times.median)
    print(f"\n{task.name}, {task.curves} curves: {winner} wins")
    print(pd.DataFrame(rows).to_string(index=False), flush=True)
    alike = [name for name in task.peers if UNCONDITIONAL not in name]
    return {
        "task": task.name,
        "batch": task.curves,
        "winner": winner,
        "rows": rows,
        "ours_over_best_peer": over_best(task.ours, task.peers, times),
        "ours_over_best_peer_that_does_as_much": over_best(task.ours, alike, times),
    }


def over_best(ours: list[str], peers: list[str], times: Times) -> dict[str, float] | None:
    """How many times as fast as the fastest of `peers` each of ours is; None without peers."""
    if not peers:
        return None
    return {name: min(times.ratio(name, peer) for peer in peers) for name in ours}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def codec_tasks(codecs: list[Codec], flow: Tensor) -> list[Task]:
    """Encode and decode, for codecs that are not trained."""
    sizes = {codec.name: count(codec.module) for codec in codecs}
    encode: dict[str, Call] = {}
    decode: dict[str, Call] = {}
    for codec in codecs:
        codec.module.eval()
        encode[codec.name] = without_gradient(codec.encode, flow)
        decode[codec.name] = without_gradient(codec.decode, encode[codec.name]())
    return [
        Task("codec: encode", len(flow), encode, sizes),
        Task("codec: decode", len(flow), decode, sizes),
    ]


def codec_training_tasks(codecs: list[Codec], flow: Tensor) -> list[Task]:
    """One step of training, and one step of the quantiser alone. Puts the codecs into training."""
    quantiser_sizes = {}
    for codec in codecs:
        own = getattr(codec.module, "quantiser", None) or codec.module.quantizer
        quantiser_sizes[codec.name] = count(own)
    steps = {codec.name: step_of(codec.module, codec.loss, flow) for codec in codecs}
    quantise = {codec.name: without_gradient(codec.quantise) for codec in codecs}
    sizes = {codec.name: count(codec.module) for codec in codecs}
    return [
        Task("codec: training step", len(flow), steps, sizes),
        Task("quantiser alone, as in training", len(flow), quantise, quantiser_sizes),
    ]


def label(network: Network) -> str:
    return network.name + ("" if network.conditional else UNCONDITIONAL)


def call_task(networks: list[Network], z: Tensor, people: Tensor) -> Task:
    """One call of the U-Net."""
    calls = {}
    for network in networks:
        network.module.eval()
        calls[label(network)] = without_gradient(network.ready(people), z)
    sizes = {label(network): count(network.module.unet) for network in networks}
    return Task("U-Net: one call", len(z), calls, sizes)


def sampling_task(
    name: str,
    networks: list[Network],
    z: Tensor,
    people: Tensor,
    decode: Callable[[Tensor], Tensor],
) -> Task:
    """Sampling with decoding, at recommended settings or at this project's number of calls."""
    recommended = "recommended" in name
    calls = {}
    sizes = {}
    for network in networks:
        draws = network.samplers if recommended else network.not_recommended
        for how, draw in draws.items():
            full = f"{label(network)}, {how}"
            calls[full] = without_gradient(lambda draw=draw: decode(draw(z, people)))
            sizes[full] = count(network.module.unet)
        for how, call in network.whole.items() if recommended else ():
            full = f"{label(network)}, {how}"
            calls[full] = call
            sizes[full] = count(network.module.unet)
    return Task(name, len(z), calls, sizes)


def network_training_task(networks: list[Network], z: Tensor, people: Tensor) -> Task:
    """One step of training. Puts the networks into training."""
    steps = {label(n): step_of(n.module, n.loss, z, people) for n in networks}
    sizes = {label(network): count(network.module.unet) for network in networks}
    return Task("U-Net: training step", len(z), steps, sizes)


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def versions() -> dict[str, str]:
    """Of Python and the packages that are there."""
    found = {"python": platform.python_version()}
    for package in ("spiro-diffusion", "torch", *dict.fromkeys([*NETWORKS, *CODECS])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class Field:
    """All that are compared, this project's first, and the packages that are not installed."""

    networks: list[Network]
    codecs: list[Codec]
    missing: list[str]

    @property
    def has_peers(self) -> bool:
        return len(self.networks) > 1 or len(self.codecs) > 1


def build(models: Models, device: str, curves: int) -> Field:
    """This project's networks and codecs, and those of the peers that are installed."""
    calls = DrawSettings().steps - 1  # the first step is the normal part's alone
    networks = [our_network(models, calls, some_people(curves))]
    codecs = [our_codec(device)]
    missing = set()
    for package, networks_of in NETWORKS.items():
        try:
            networks += networks_of(models.cldm.settings, calls)
        except ModuleNotFoundError:
            missing.add(package)
    for package, codecs_of in CODECS.items():
        try:
            codecs += codecs_of(device)
        except ModuleNotFoundError:
            missing.add(package)
    for network in networks:
        network.module.to(device)
    return Field(networks, codecs, sorted(missing))


def some_people(n: int) -> pd.DataFrame:
    """n random men, the same in every run, whose curves are good first blows."""
    random = torch.Generator().manual_seed(0)
    age = 20 + 59 * torch.rand(n, generator=random)
    height = 150 + 40 * torch.rand(n, generator=random)
    table = pd.DataFrame({"age": age.numpy(), "height": height.numpy()})
    return table.assign(sex=1, effort="A", test="pre", blow="best")


def measure(field: Field, models: Models, z: Tensor, bench: Bench) -> list[dict[str, Any]]:
    """All tasks, one after another."""
    values = encode_patients(some_people(len(z)), models.cldm.settings.variables)
    people = torch.from_numpy(values).to(bench.device)
    decode = models.vqvae.decode_latents
    flow = decode(z).detach()
    networks = field.networks

    def timed(task: Task) -> dict[str, Any]:
        sampling = task.name.startswith("sampling")
        repeats = bench.sampling_repeats if sampling else bench.repeats
        return compare(task, repeats, bench.device)

    measured = [timed(task) for task in codec_tasks(field.codecs, flow)]
    measured += [timed(task) for task in codec_training_tasks(field.codecs, flow[:TRAINED])]
    measured.append(timed(call_task(networks, z, people)))
    for name in (
        "sampling, each at its recommended settings",
        "sampling at this project's number of calls",
    ):
        measured.append(timed(sampling_task(name, networks, z, people, decode)))
    for batch in NETWORK_BATCHES:
        measured.append(timed(network_training_task(networks, z[:batch], people[:batch])))
    return measured


def goals(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, beside what was measured against the best peer."""
    found = []
    for task in tasks:
        if task["task"] not in AIMS or not task["ours_over_best_peer"]:
            continue
        aim = AIMS[task["task"]]
        alike = task["ours_over_best_peer_that_does_as_much"] or {}
        for name, ratio in task["ours_over_best_peer"].items():
            found.append(
                {
                    "task": task["task"],
                    "batch": task["batch"],
                    "name": name,
                    "goal": aim,
                    "measured": ratio,
                    "met": ratio >= aim,
                    "against_those_that_do_as_much": alike.get(name),
                }
            )
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast for all (a GPU)")
    parser.add_argument("--compile", action="store_true", help="torch.compile all U-Nets (a GPU)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sampling-repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256, help=argparse.SUPPRESS)
    parser.add_argument("--shared", action="store_true", help="others worked here meanwhile")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "peers.json"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = load_models()
    models.vqvae.to(args.device)
    field = build(models, args.device, args.batch)
    if not field.has_peers:
        raise SystemExit(
            "no peer is installed: bench/README.md says how; nothing was measured or written"
        )
    print("left out, not installed:", ", ".join(field.missing) or "none")
    if args.compile:
        for network in field.networks:
            network.module.unet.compile()
    z = torch.randn(args.batch, 1, 32).to(args.device)
    bench = Bench(args.device, args.repeats, args.sampling_repeats)
    began = os.getloadavg()[0]
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        tasks = measure(field, models, z, bench)
    patched = ["MONAI for one dimension: residual blocks, transformers, EMA quantiser"]
    record = {
        "device": device_name(args.device),
        "threads": args.threads,
        "time": "processor" if args.device == "cpu" and args.threads == 1 else "clock",
        "machine_shared": args.shared,
        "load_average": [round(began, 2), round(os.getloadavg()[0], 2)],
        "bf16": args.bf16,
        "compile": args.compile,
        "repeats": args.repeats,
        "sampling_repeats": args.sampling_repeats,
        "latent": [1, 32],
        "versions": versions(),
        "not_installed": field.missing,
        "patched": patched if "monai" not in field.missing else [],
        "goals": goals(tasks),
        "tasks": tasks,
    }
    write_json(args.out, record)
    print("\n", pd.DataFrame(record["goals"]).to_string(index=False))


if __name__ == "__main__":
    main()
