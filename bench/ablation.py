"""Physics in three places, each switched on in turn: what it buys.

    python bench/ablation.py --run-dir RUN [--codec-steps 600] [--steps 1000] [--more 1000]
                             [--people 250] [--draws 4] [--out FILE]

One run, with the same data, seeds and steps. RUN holds data/processed as 00_data and 02_latents
write it, and checkpoints/. The rows:

none        a decoder without softplus, trained on flow alone
1           physics by construction: softplus, clock, losses on volume
1 + 2       and in the denoiser's loss: `physics_loss` below, in no other place of the project
... + 3     and steered towards each held-out person's FEV1 while sampling

These models are small runs from nothing. Then RUN's own trained model is trained further for
`--more` steps, once without and once with physics in its loss ("trained, ..."). Truth is the best
blow of people of split test with effort grade A.

Two more small runs turn the codec's components at random and so that each latent has a window of
the curve ("turns"): same bits, steps and seeds. Writes bench/results/ablation.json.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from samplers import NAMES, held_out, source_of
from torch import Tensor
from torch.nn import functional

from spiro_diffusion import cldm
from spiro_diffusion import vqvae as codec
from spiro_diffusion.base.files import sha256_of, write_json
from spiro_diffusion.cldm import CLDM, Rows, sample
from spiro_diffusion.data import load_prepared
from spiro_diffusion.generation.drawing import DEFAULT_CONDITIONS
from spiro_diffusion.generation.steering import steer
from spiro_diffusion.latents import load_described
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.learning.curves import AlignedBlow, volume_of
from spiro_diffusion.learning.noise import starting_noise
from spiro_diffusion.learning.training import TrainConfig, train
from spiro_diffusion.metrics.scores import HEADLINE, classifier_auc, crps
from spiro_diffusion.metrics.tables import chance_table
from spiro_diffusion.spirometry.clock import N_BINS
from spiro_diffusion.spirometry.indices import indices_on_clock
from spiro_diffusion.spirometry.quality import acceptability_on_clock

SMALLEST = 0.1  # L or L/s: no share is taken of less
END_BINS = 64  # the last bins of the clock, in which a curve should have ended
REBOUND_WEIGHT = 0.1
SEED = 0  # of trainings and draws
GENTLE = 3e-4  # learning rate with which the trained model is trained further


def rebound(flow: Tensor) -> Tensor:
    """By how much flow (N, 512) L/s rises again after its peak, in all, (N,) L/s."""
    after = torch.arange(1, N_BINS) > flow.argmax(1, keepdim=True)
    return (functional.relu(flow.diff(dim=1)) * after).sum(1)


def flow_errors(flow: Tensor, true: Tensor) -> Tensor:
    """Errors of flow (N, 512) L/s in volume over time, end, peak and rebounds, (N,).

    Volumes count as shares of FVC, flows as shares of PEF.
    """
    volume = volume_of(flow)[:, 1:]
    true_volume = volume_of(true)[:, 1:]
    fvc = true_volume[:, -1:].clamp_min(SMALLEST)
    peak = true.amax(1).clamp_min(SMALLEST)
    by_volume = (((volume - true_volume) / fvc) ** 2).mean(1)
    too_late = functional.relu(flow[:, -END_BINS:] - true[:, -END_BINS:]).mean(1)
    by_end = (too_late / peak) ** 2
    by_peak = ((flow.amax(1) - true.amax(1)) / peak) ** 2
    by_rebound = functional.relu(rebound(flow) - rebound(true)) / peak
    return by_volume + by_end + by_peak + REBOUND_WEIGHT * by_rebound


def physics_loss(
    decode: Callable[[Tensor], Tensor], guess: Tensor, truth: Tensor, sigma: Tensor
) -> Tensor:
    """`flow_errors` of decoded guesses (N, C, 32), weighted by 1 / (1 + sigma²); a scalar.

    Computed for the quarter of the rows with the smallest sigma (N,), as decoding is dear.
    """
    least = sigma.argsort()[: max(len(sigma) // 4, 1)]
    errors = flow_errors(decode(guess[least]), decode(truth[least]).detach())
    return (errors / (1 + sigma[least] ** 2)).mean()


def train_denoiser(
    model: CLDM,
    rows: Rows,
    config: TrainConfig,
    folder: Path,
    decode: Callable[[Tensor], Tensor] | None,
) -> CLDM:
    """The model after training, with physics of the decoded guesses in its loss if `decode`."""

    def loss_fn(
        model: CLDM, batch: tuple[Tensor, ...], generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        guess, sigma = cldm.guess_of_noised(model, batch, generator)
        loss = cldm.weighted_error(guess, batch[0], sigma)
        if decode is not None:
            loss = loss + physics_loss(decode, guess, batch[0], sigma)
        return loss, {}

    train(model, loss_fn, (rows.latents, rows.values), config, folder)
    return model.eval().requires_grad_(False)


def unchanged(y: Tensor) -> Tensor:
    """In place of the softplus."""
    return y


def unchanged_in_float64(flow: Tensor) -> Tensor:
    """In place of the softplus's inverse."""
    return flow.double()


class PlainDecoder(codec.Decoder):
    """The decoder without its softplus: flow may be negative."""

    def fit(self, values: Tensor, blow: AlignedBlow) -> None:
        with without_softplus():
            super().fit(values, blow)

    def forward(self, values: Tensor) -> AlignedBlow:
        with without_softplus():
            return super().forward(values)


@contextmanager
def without_softplus() -> Iterator[None]:
    """Inside, the codec's softplus and its inverse change nothing."""
    with mock.patch.multiple(
        codec, sharp_softplus=unchanged, inverse_softplus=unchanged_in_float64
    ):
        yield


def train_codec(flow: np.ndarray, steps: int, plain: bool, folder: Path) -> codec.VQVAE:
    """A codec trained on flow (N, 512) L/s, with physics by construction or plain."""
    settings = codec.settings_for("default", SEED, "cpu", steps)
    if plain:
        settings = replace(settings, weights=replace(settings.weights, volume=0.0, end=0.0))
    with mock.patch.object(codec, "Decoder", PlainDecoder if plain else codec.Decoder):
        model, _ = codec.train_vqvae(flow, settings, folder)
    return model.requires_grad_(False)


@dataclass
class HeldOut:
    """People whom no model has seen, and the indices of their best blows."""

    people: pd.DataFrame
    truth: pd.DataFrame
    draws: int  # for each person

    @property
    def fev1(self) -> np.ndarray:
        """FEV1 (people * draws,) L that each curve should have."""
        return np.repeat(self.truth["fev1"].to_numpy(), self.draws)


def draw(model: CLDM, vqvae: codec.VQVAE, held: HeldOut, steered: bool) -> np.ndarray:
    """Flow (people * draws, 512) L/s, or steered to each person's FEV1."""
    settings = model.settings
    patients = held.people[["age", "height", "gender"]].assign(**DEFAULT_CONDITIONS)
    values = torch.from_numpy(encode_patients(patients, settings.variables))
    noise = starting_noise(
        held.people["SEQN"].repeat(held.draws),
        np.tile(np.arange(held.draws), len(held.people)),
        SEED,
        (settings.channels, settings.positions),
    )
    denoise = model.denoiser(values.repeat_interleave(held.draws, 0))
    if steered:
        target = {"fev1": torch.from_numpy(held.fev1).float()}
        denoise = steer(denoise, vqvae.decode_latents, target)
    return vqvae.decode_latents(sample(denoise, noise)).numpy()


def judge(
    name: str, model: CLDM, vqvae: codec.VQVAE, held: HeldOut, steered: bool = False
) -> dict[str, Any]:
    """One row of the table."""
    flow = draw(model, vqvae, held, steered)
    not_negative = (flow >= 0).all(1)
    flow = np.maximum(flow, 0)
    table = indices_on_clock(flow)
    acceptable = acceptability_on_clock(flow)["acceptable"].to_numpy()
    drawn = {name: table[name].to_numpy().reshape(-1, held.draws) for name in HEADLINE}
    distances = chance_table(held.truth, drawn)
    miss = 1000 * np.abs(table["fev1"].to_numpy() - held.fev1)  # mL
    row = {
        "physics": name,
        "flow_not_negative": float(not_negative.mean()),
        "acceptable": float((acceptable & not_negative).mean()),
        "ks_over_chance": float(distances["ks_ratio"].mean()),
        "fev1_miss_median_ml": float(np.median(miss)),
        "fev1_miss_p95_ml": float(np.quantile(miss, 0.95)),
    }
    print(row, flush=True)
    return row


@dataclass
class Data:
    """The prepared data of a run."""

    flow: np.ndarray
    metadata: pd.DataFrame
    held: HeldOut

    def rows(self, vqvae: codec.VQVAE) -> Rows:
        """Latents and clinical values of the people of split train."""
        latents = vqvae.latents(np.array(self.flow))  # torch warns of read-only arrays
        variables = cldm.CLDMSettings().variables
        return cldm.rows_of_split(latents, self.metadata, "train", variables)


def small_runs(data: Data, codec_steps: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """The rows of models that are trained from nothing."""
    train_rows = (data.metadata["split"] == "train").to_numpy()
    table = []
    for plain, in_loss in ((True, {"none": False}), (False, {"1": False, "1 + 2": True})):
        home = folder / f"codec_{plain}"
        vqvae = train_codec(np.array(data.flow[train_rows]), codec_steps, plain, home)
        rows = data.rows(vqvae)
        settings = cldm.settings_for("default", SEED, "cpu", steps)
        settings = cldm.settings_of_data(settings, rows, home)
        for name, physics in in_loss.items():
            decode = vqvae.decode_latents if physics else None
            model = cldm.new_model(settings, rows.latents)
            model = train_denoiser(model, rows, settings.train, folder / name, decode)
            table.append(judge(name, model, vqvae, data.held))
            if not plain:
                table.append(judge(f"{name} + 3", model, vqvae, data.held, steered=True))
    return table


def longer_runs(data: Data, run_dir: Path, more: int, folder: Path) -> list[dict[str, Any]]:
    """The rows of the trained model of `run_dir` after `more` steps."""
    checkpoints = run_dir / "checkpoints"
    vqvae = codec.VQVAE.from_pretrained(checkpoints / "vqvae").requires_grad_(False)
    rows = data.rows(vqvae)
    config = replace(cldm.settings_for("default", SEED, "cpu", more).train, lr=GENTLE)
    table = []
    for name, decode in (("trained, 1", None), ("trained, 1 + 2", vqvae.decode_latents)):
        model = CLDM.from_pretrained(checkpoints / "cldm").requires_grad_(True)
        model = train_denoiser(model, rows, config, folder / name, decode)
        table.append(judge(name, model, vqvae, data.held))
    return table


def random_turn(loadings: Tensor) -> Tensor:
    """A random rotation (size, size), for loadings (size, K) of which nothing is used."""
    size = len(loadings)
    return torch.linalg.qr(torch.randn(size, size, dtype=loadings.dtype))[0].to(loadings.device)


TURNS: dict[str, codec.Turn] = {"random": random_turn, "local": codec.local_turn}
MOST_TEST_ROWS = 2000  # blows of split test that a codec is judged on


def validation_loss(model: CLDM, latents: np.ndarray, metadata: pd.DataFrame) -> float:
    """The denoising loss on people of split val."""
    held = cldm.rows_of_split(
        latents, metadata, "val", model.settings.variables, cldm.VALIDATION_ROWS
    )
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        return float(cldm.edm_loss(model, (held.latents, held.values), generator)[0])


def turn_row(
    name: str, turn: codec.Turn, data: Data, steps: tuple[int, int], folder: Path
) -> dict[str, Any]:
    """A row of the table of turns; steps: of the codec and of the denoiser."""
    train_rows = (data.metadata["split"] == "train").to_numpy()
    turned = partialmethod(codec.VQVAE.fit, turn=turn)
    with mock.patch.object(codec.VQVAE, "fit", turned):
        vqvae = train_codec(np.array(data.flow[train_rows]), steps[0], False, folder / "codec")
    test = np.flatnonzero(data.metadata["split"] == "test")[:MOST_TEST_ROWS]
    flow = np.array(data.flow[test])
    codes = vqvae.encode(flow)
    errors = codec.reconstruction_errors(flow, vqvae.decode(codes))
    latents = vqvae.latents(np.array(data.flow))
    rows = cldm.rows_of_split(latents, data.metadata, "train", cldm.CLDMSettings().variables)
    settings = cldm.settings_for("default", SEED, "cpu", steps[1])
    settings = cldm.settings_of_data(settings, rows, folder / "codec")
    model = cldm.new_model(settings, rows.latents)
    model = train_denoiser(model, rows, settings.train, folder / "cldm", None)
    drawn = indices_on_clock(draw(model, vqvae, data.held, steered=False))
    row = {
        "turn": name,
        **{f"{index}_median": float(error) for index, error in errors["median"].items()},
        **{f"{index}_p95": float(error) for index, error in errors["p95"].items()},
        **codec.code_usage(codes),
        "validation_loss": validation_loss(model, latents, data.metadata),
        **drawn_scores(data.held, drawn),
    }
    print(row, flush=True)
    return row


def drawn_scores(held: HeldOut, drawn: pd.DataFrame) -> dict[str, float]:
    """CRPS of indices of draws, and the AUC of trees that tell them from people's own."""
    people = held.people["SEQN"].to_numpy()
    found = {}
    for index in NAMES:
        draws = drawn[index].to_numpy().reshape(len(people), -1)
        found[f"crps_{index}"] = float(crps(draws, held.truth[index].to_numpy()).mean())
    real = held.truth[NAMES].to_numpy()
    made = drawn[NAMES].to_numpy()
    whose = np.repeat(people, held.draws)
    return {**found, "trees_auc": classifier_auc(real, made, people, whose, SEED)}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, default=Path())
    parser.add_argument("--codec-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--more", type=int, default=1000)
    parser.add_argument("--people", type=int, default=250)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "ablation.json"
    )
    return parser.parse_args()


def main() -> None:
    args = parsed()
    flow, metadata = load_prepared(args.run_dir)
    metadata = load_described(args.run_dir, metadata)
    people = held_out(metadata, args.people)
    held = HeldOut(people, indices_on_clock(flow[people.index]), args.draws)
    data = Data(flow, metadata, held)
    with tempfile.TemporaryDirectory() as folder:
        rows = small_runs(data, args.codec_steps, args.steps, Path(folder))
        rows += longer_runs(data, args.run_dir, args.more, Path(folder))
        steps = (args.codec_steps, args.steps)
        turns = [
            turn_row(name, turn, data, steps, Path(folder) / name) for name, turn in TURNS.items()
        ]
    acceptable = acceptability_on_clock(flow[held.people.index])["acceptable"]
    record = {
        "people": len(held.people),
        "draws": args.draws,
        "seed": SEED,
        "source": source_of(args.run_dir),
        "weights_sha256": {
            model: sha256_of(args.run_dir / "checkpoints" / model / "model.safetensors")
            for model in ("vqvae", "cldm")
        },
        "steps": args.steps,
        "codec_steps": args.codec_steps,
        "more_steps": args.more,
        "held_out": {"acceptable": float(acceptable.mean())},
        "rows": rows,
        "turns": turns,
    }
    write_json(args.out, record)


if __name__ == "__main__":
    main()
