"""This project's codec, U-Net and samplers beside peers from other packages, in one run, taking turns.

    python bench/peers.py [--repeats 15] [--sampling-repeats 5] [--threads 1] [--shared] [--device cuda [--bf16] [--compile]]

bench/README.md says how to install the peers; those that are not installed are left out, and named. In each round every
peer is timed right beside this project's, by turns before and after it: speeds are of the median time, ratios the
medians of the rounds' ratios. On the CPU with one thread time is the processor's, which stands a busy machine; the
clock's is noted too. Sampling is of 256 curves with decoding, by this project's decoder for all. Networks and codecs of
the peers are not trained: this says how fast they are, not how good. Writes bench/results/peers.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peer_models import CODECS, NETWORKS, OURS, Codec, Network, our_codec, our_network
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spiro_diffusion.base.files import write_json
from spiro_diffusion.generation.drawing import DrawSettings, load_models
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.learning.training import Ema

Call = Callable[[], Any]
UNCONDITIONAL = " (unconditional)"


def seconds(call: Call, device: str) -> tuple[float, float]:
    """Time of one call: of the processor if it is the CPU with one thread, else of the clock or the GPU; and of the clock."""
    if device == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended) / 1000, began.elapsed_time(ended) / 1000
    worked, began = time.process_time(), time.perf_counter()
    call()
    worked, took = time.process_time() - worked, time.perf_counter() - began
    return worked if torch.get_num_threads() == 1 else took, took


def quiet(call: Call) -> Call:
    """The call without gradients."""
    return torch.no_grad()(call)


def step_of(module: nn.Module, loss: Callable[..., Tensor], *data: Tensor) -> Call:
    """A training step as `training.train` makes it: loss, gradients, clipping, AdamW, averaged weights."""
    module.train()
    optimizer, ema = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True), Ema(module, 0.999)

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


def compare(
    task: str,
    curves: int,
    mine: dict[str, Call],
    peers: dict[str, Call],
    sizes: dict[str, int],
    repeats: int,
    device: str,
) -> dict[str, Any]:
    """One row for each of `mine` and `peers`: speed, and how many times as fast as it each of `mine` is."""
    every = mine | peers
    flops = {k: mflop(call, curves) for k, call in every.items()}  # this is the warm-up as well
    took: dict[str, list[tuple[float, float]]] = {k: [] for k in every}
    ratios: dict[tuple[str, str], list[float]] = {(m, p): [] for m in mine for p in peers}
    for turn in range(repeats):
        for peer in peers:
            group = [*mine, peer][:: -1 if turn % 2 else 1]
            now = {k: seconds(every[k], device) for k in group}
            for k, both in now.items():
                took[k].append(both)
            for m in mine:
                ratios[m, peer].append(now[peer][0] / now[m][0])
    middle, clock = (
        {k: statistics.median(t[i] for t in pairs) for k, pairs in took.items()} for i in (0, 1)
    )
    rows = [
        {
            "name": k, "parameters": sizes[k], "mflop_per_curve": round(flops[k], 2), "ms": round(1000 * middle[k], 3), "ms_on_the_clock": round(1000 * clock[k], 3),
            "curves_per_s": round(curves / middle[k], 1), "ours_over_this": {m: round(statistics.median(ratios[m, k]), 3) for m in mine} if k in peers else None,
        } for k in every
    ]  # fmt: skip
    made = {
        "task": task,
        "batch": curves,
        "winner": min(middle, key=middle.__getitem__),
        "rows": rows,
    }
    alike = [r for r in rows if r["name"] in peers and UNCONDITIONAL not in r["name"]]
    for key, those in (
        ("ours_over_best_peer", rows[len(mine) :]),
        ("ours_over_best_peer_that_does_as_much", alike),
    ):
        made[key] = {m: min(r["ours_over_this"][m] for r in those) for m in mine} if those else None
    print(
        f"\n{task}, {curves} curves: {made['winner']} wins\n",
        pd.DataFrame(rows).to_string(index=False),
        flush=True,
    )
    return made


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def codec_tasks(
    codecs: list[Codec], flow: Tensor, repeats: int, device: str
) -> list[dict[str, Any]]:
    """Encode, decode, one step of training, one step of the quantiser."""
    sizes, few = {c.name: count(c.module) for c in codecs}, flow[:128]

    def task(
        name: str, curves: int, calls: dict[str, Call], sizes: dict[str, int] = sizes
    ) -> dict[str, Any]:
        return compare(name, curves, {OURS: calls.pop(OURS)}, calls, sizes, repeats, device)

    for c in codecs:
        c.module.eval()
    with torch.no_grad():
        codes = {c.name: c.encode(flow) for c in codecs}
    tasks = [
        task(
            "codec: encode", len(flow), {c.name: quiet(lambda c=c: c.encode(flow)) for c in codecs}
        ),
        task(
            "codec: decode",
            len(flow),
            {c.name: quiet(lambda c=c: c.decode(codes[c.name])) for c in codecs},
        ),
        task(
            "codec: training step",
            len(few),
            {c.name: step_of(c.module, c.loss, few) for c in codecs},
        ),
    ]
    quantisers = {
        c.name: count(getattr(c.module, "quantiser", None) or c.module.quantizer) for c in codecs
    }
    return [
        *tasks,
        task(
            "quantiser alone, as in training",
            len(few),
            {c.name: quiet(c.quantise) for c in codecs},
            quantisers,
        ),
    ]


def network_tasks(
    nets: list[Network],
    z: Tensor,
    people: Tensor,
    decode: Callable[[Tensor], Tensor],
    repeats: int,
    sampling_repeats: int,
    device: str,
) -> list[dict[str, Any]]:
    """One call, training steps of 64 and 128, whole sampling."""
    named = lambda n: n.name + ("" if n.conditional else UNCONDITIONAL)
    sizes = {named(n): count(n.module.unet) for n in nets}
    for n in nets:
        n.module.eval()
    ready = {named(n): n.ready(people) for n in nets}
    calls = {k: quiet(lambda r=r: r(z)) for k, r in ready.items()}
    tasks = [
        compare("U-Net: one call", len(z), {OURS: calls.pop(OURS)}, calls, sizes, repeats, device)
    ]
    for title, field, mine in (
        ("sampling, each at its recommended settings", "samplers", OURS),
        ("sampling at this project's number of calls", "not_recommended", OURS),
    ):
        draws, parts = {}, {}
        for n in nets:
            for how, draw in getattr(n, field).items():
                name = f"{named(n)}, {how}"
                draws[name], parts[name] = (
                    quiet(lambda draw=draw: decode(draw(z, people))),
                    sizes[named(n)],
                )
        ours = {k: draws.pop(k) for k in list(draws) if k.startswith(mine)}
        tasks.append(compare(title, len(z), ours, draws, parts, sampling_repeats, device))
    for batch in (64, 128):
        steps = {named(n): step_of(n.module, n.loss, z[:batch], people[:batch]) for n in nets}
        tasks.append(
            compare(
                "U-Net: training step",
                batch,
                {OURS: steps.pop(OURS)},
                steps,
                sizes,
                repeats,
                device,
            )
        )
    return tasks


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """Of Python and the packages that are there."""
    found = {"python": platform.python_version()}
    for package in ("spiro-diffusion", "torch", *dict.fromkeys([*NETWORKS, *CODECS])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def build(models: Any, device: str) -> tuple[list[Network], list[Codec], list[str]]:
    """This project's networks and codecs first, then those of the peers that are installed, and the names of the others."""
    settings, calls, missing = (
        models.cldm.settings,
        DrawSettings().steps - 1,
        [],
    )  # the first step is the normal part's alone
    nets, codecs = [our_network(models, calls)], [our_codec(device)]
    for package, make in NETWORKS.items():
        try:
            nets += make(settings, calls)
        except ModuleNotFoundError:
            missing.append(package)
    for package, make in CODECS.items():
        try:
            codecs += make(device)
        except ModuleNotFoundError:
            missing.append(package)
    for n in nets:
        n.module.to(device)
    return nets, codecs, sorted(set(missing))


def goals(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, beside what was measured: this project over the best peer, and over the best that does as much."""
    aims = {
        "sampling, each at its recommended settings": 5.0,
        "U-Net: training step": 1.0,
        "codec: training step": 1.0,
    }
    return [
        {"task": t["task"], "batch": t["batch"], "name": name, "goal": aims[t["task"]], "measured": ratio, "met": ratio >= aims[t["task"]], "against_those_that_do_as_much": t["ours_over_best_peer_that_does_as_much"][name]}
        for t in tasks if t["task"] in aims and t["ours_over_best_peer"] for name, ratio in t["ours_over_best_peer"].items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast for all (a GPU)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile for all U-Nets (a GPU)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sampling-repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256, help=argparse.SUPPRESS)
    parser.add_argument(
        "--shared", action="store_true", help="note that others worked on this machine meanwhile"
    )
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "peers.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = load_models()
    models.vqvae.to(args.device)
    nets, codecs, missing = build(models, args.device)
    if len(nets) == 1 and len(codecs) == 1:
        raise SystemExit(
            "no peer is installed: bench/README.md says how; nothing was measured or written"
        )
    print("left out, not installed:", ", ".join(missing) or "none")
    if args.compile:
        for n in nets:
            n.module.unet.compile()
    z, rng = torch.randn(args.batch, 1, 32).to(args.device), torch.Generator().manual_seed(0)
    adults = pd.DataFrame(
        {
            "age": 20 + 59 * torch.rand(args.batch, generator=rng).numpy(),
            "height": 150 + 40 * torch.rand(args.batch, generator=rng).numpy(),
        }
    )
    people = torch.from_numpy(
        encode_patients(
            adults.assign(sex=1, effort="A", test="pre", blow="best"),
            models.cldm.settings.variables,
        )
    ).to(args.device)
    began = os.getloadavg()[0]
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        flow = models.vqvae.decode_latents(z).detach()
        tasks = codec_tasks(codecs, flow, args.repeats, args.device) + network_tasks(
            nets,
            z,
            people,
            models.vqvae.decode_latents,
            args.repeats,
            args.sampling_repeats,
            args.device,
        )
    record = {
        "device": device_name(args.device), "threads": args.threads, "time": "processor" if args.device == "cpu" and args.threads == 1 else "clock", "machine_shared": args.shared, "load_average": [round(began, 2), round(os.getloadavg()[0], 2)],
        "bf16": args.bf16, "compile": args.compile, "repeats": args.repeats, "sampling_repeats": args.sampling_repeats, "latent": [1, 32],
        "versions": versions(), "not_installed": missing, "patched": ["MONAI for one dimension: residual blocks, transformers, EMA quantiser"] * ("monai" not in missing),
        "goals": goals(tasks), "tasks": tasks,
    }  # fmt: skip
    write_json(args.out, record)
    print("\n", pd.DataFrame(record["goals"]).to_string(index=False))


if __name__ == "__main__":
    main()
