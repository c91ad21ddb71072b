"""Physics in three places, each switched on in turn: what it buys. One run, same data, seeds and steps.

    python bench/ablation.py --run-dir RUN [--codec-steps 600] [--steps 1000] [--more 1000] [--people 250] [--draws 4]

RUN holds data/processed as 00_data and 02_latents write it, and checkpoints/. Rows: none (a decoder without softplus,
trained on flow alone), 1 (by construction: softplus, clock, losses on volume), 1 + 2 (physics in the denoiser's loss:
`physics_loss` below, in no other place of the project), each + 3 (steered towards each held-out blow's FEV1 while
sampling). These models are small runs from nothing; then RUN's own trained model goes on for `--more` steps, once
without and once with physics in its loss ("trained, ..."). Truth is the best blow of people of split test with effort
grade A. Writes bench/results/ablation.json.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spiro_diffusion import cldm
from spiro_diffusion import vqvae as codec
from spiro_diffusion.base.files import write_json
from spiro_diffusion.cldm import CLDM, sample, settings_for, train_cldm
from spiro_diffusion.data import load_prepared
from spiro_diffusion.generation.drawing import USUAL, starting_noise
from spiro_diffusion.generation.steering import steer
from spiro_diffusion.latents import load_described
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.learning.curves import volume_of
from spiro_diffusion.metrics.scores import ks_table
from spiro_diffusion.spirometry.clock import N_BINS
from spiro_diffusion.spirometry.indices import indices_on_clock
from spiro_diffusion.spirometry.quality import acceptability_on_clock


def rebound(flow: Tensor) -> Tensor:
    """By how much flow (N, 512) L/s rises again after its peak, in all, (N,) L/s."""
    after = torch.arange(1, N_BINS) > flow.argmax(1, keepdim=True)
    return (F.relu(flow.diff(dim=1)) * after).sum(1)


def physics_loss(
    decode: Callable[[Tensor], Tensor], guess: Tensor, truth: Tensor, sigma: Tensor
) -> Tensor:
    """Error of the decoded guess (N, C, 32) in volume over time, end, peak and rebounds, as shares of FVC and of PEF.

    Computed for the quarter of the rows with the smallest sigma (N,), weighted by 1 / (1 + sigma²); a scalar.
    """
    least = sigma.argsort()[: max(len(sigma) // 4, 1)]
    flow, true = decode(guess[least]), decode(truth[least]).detach()
    volume, true_volume, peak = (
        volume_of(flow)[:, 1:],
        volume_of(true)[:, 1:],
        true.amax(1).clamp_min(0.1),
    )
    by_volume = (((volume - true_volume) / true_volume[:, -1:].clamp_min(0.1)) ** 2).mean(1)
    by_end = (F.relu(flow[:, -64:] - true[:, -64:]).mean(1) / peak) ** 2
    by_peak = ((flow.amax(1) - true.amax(1)) / peak) ** 2
    by_rebound = F.relu(rebound(flow) - rebound(true)) / peak
    return ((by_volume + by_end + by_peak + 0.1 * by_rebound) / (1 + sigma[least] ** 2)).mean()


def train_denoiser(
    latents,
    metadata,
    settings,
    folder: Path,
    vqvae,
    home: Path,
    physics: float,
    start: Path | None = None,
) -> CLDM:
    """A cLDM, with physics of that weight in its loss; from the weights in `start` if given."""
    plain, made = cldm.edm_loss, cldm.CLDM

    def loss(model, batch, generator=None, step=0):
        seen = {}

        def noted(x, sigma, values):
            seen["sigma"], seen["guess"] = sigma, model(x, sigma, values)
            return seen["guess"]

        noted.settings = model.settings
        total, parts = plain(noted, batch, generator, step)
        return (
            total
            + physics * physics_loss(vqvae.decode_latents, seen["guess"], batch[0], seen["sigma"])
            if physics
            else total
        ), parts

    def model_of(settings):
        model = made(settings)
        if start is not None:
            model.load_state_dict(CLDM.from_pretrained(start).state_dict())
        return model

    with mock.patch.object(cldm, "edm_loss", loss), mock.patch.object(cldm, "CLDM", model_of):
        return train_cldm(latents, metadata, settings, folder, home)[0]


class PlainDecoder(codec.Decoder):
    """The decoder without its softplus: flow may be negative."""

    def fit(self, values, blows):
        self.scale.copy_(blows[0].mean(0) + 0.02)
        y = torch.cat(
            [
                (blows[0] / self.scale).double(),
                torch.stack([blows[1] / 20, blows[2] * 10], 1).double(),
            ],
            1,
        )
        x = F.pad(values.flatten(1).double(), (0, 1), value=1.0)
        solution = torch.linalg.solve(
            x.T @ x + 1e-5 * len(x) * torch.eye(x.shape[1]).to(x), x.T @ y
        )
        self.weight.copy_(solution[:-1]), self.bias.copy_(solution[-1])

    def forward(self, values):
        x = self.blocks(self.into(values.flatten(1)))
        learned = self.unpatch(F.gelu(self.pieces(x)).unflatten(1, (self.channels, -1)))[:, 0]
        y = (
            codec.exact(values.flatten(1), self.weight, self.bias)
            + torch.cat([learned, self.start(x)], 1).float()
        )
        return y[:, :-2] * self.scale, 20 * y[:, -2], y[:, -1] / 10


def train_codec(flow, metadata, steps: int, plain: bool, folder: Path):
    """A codec, with or without physics by construction."""
    settings = codec.settings_for("default", 0, "cpu", steps)
    if plain:
        settings = replace(settings, weights=replace(settings.weights, volume=0.0, end=0.0))
    with mock.patch.object(codec, "Decoder", PlainDecoder if plain else codec.Decoder):
        return codec.train_vqvae(
            np.asarray(flow[(metadata["split"] == "train").to_numpy()]), settings, folder
        )[0].requires_grad_(False)


def judge(name: str, model, vqvae, held, truth, draws: int, steered: bool) -> dict:
    """One row of the table."""
    values = torch.from_numpy(
        encode_patients(held[["age", "height", "gender"]].assign(**USUAL), model.settings.variables)
    ).repeat_interleave(draws, 0)
    shape = (model.settings.channels, model.settings.positions)
    noise = torch.from_numpy(
        starting_noise(
            held["SEQN"].repeat(draws).tolist(), np.tile(np.arange(draws), len(held)), 0, shape
        )
    )
    denoise, wanted = model.denoiser(values), np.repeat(truth["fev1"].to_numpy(), draws)
    if steered:
        denoise = steer(denoise, vqvae.decode_latents, {"fev1": torch.from_numpy(wanted).float()})
    flow = vqvae.decode_latents(sample(denoise, noise)).detach().numpy()
    lawful = (flow >= 0).all(1)
    table = indices_on_clock(np.maximum(flow, 0))
    rules = acceptability_on_clock(np.maximum(flow, 0))
    ks = ks_table(
        truth.assign(person=held["SEQN"].to_numpy()),
        table.assign(person=np.repeat(held["SEQN"].to_numpy(), draws)),
    )
    miss = 1000 * np.abs(table["fev1"].to_numpy() - wanted)
    row = {"physics": name, "flow_not_negative": float(lawful.mean()), "acceptable": float((rules["acceptable"].to_numpy() & lawful).mean()),
           "ks_over_noise": float(ks["ratio"].mean()), "fev1_miss_median_ml": float(np.median(miss)), "fev1_miss_p95_ml": float(np.quantile(miss, 0.95))}  # fmt: skip
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", default=".")
    parser.add_argument("--codec-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--more", type=int, default=1000)
    parser.add_argument("--people", type=int, default=250)
    parser.add_argument("--draws", type=int, default=4)
    args = parser.parse_args()
    flow, metadata = load_prepared(args.run_dir)
    metadata = load_described(args.run_dir, metadata)
    held = metadata[
        (metadata["split"] == "test")
        & (metadata["blow"] == "best")
        & (metadata["test"] == "pre")
        & (metadata["effort"] == "A")
        & metadata["height"].notna()
    ]
    held = held.sample(min(args.people, len(held)), random_state=0)
    truth, rows = indices_on_clock(flow[held.index]), []
    rules = acceptability_on_clock(flow[held.index])
    with tempfile.TemporaryDirectory() as folder:
        for plain, weights in ((True, (0.0,)), (False, (0.0, 1.0))):
            home = Path(folder) / f"codec_{plain}"
            vqvae = train_codec(flow, metadata, args.codec_steps, plain, home)
            latents = vqvae.latents(np.asarray(flow))
            for physics in weights:
                settings = settings_for("default", 0, "cpu", args.steps)
                model = train_denoiser(
                    latents,
                    metadata,
                    settings,
                    Path(folder) / f"cldm_{plain}_{physics}",
                    vqvae,
                    home,
                    physics,
                )
                name = "none" if plain else "1" if not physics else "1 + 2"
                rows.append(judge(name, model, vqvae, held, truth, args.draws, False))
                if not plain:
                    rows.append(judge(name + " + 3", model, vqvae, held, truth, args.draws, True))
        home, trained = (Path(args.run_dir) / "checkpoints" / m for m in ("vqvae", "cldm"))
        vqvae, settings = (
            codec.VQVAE.from_pretrained(home).requires_grad_(False),
            CLDM.from_pretrained(trained).settings,
        )
        latents, gentle = (
            vqvae.latents(np.asarray(flow)),
            replace(settings_for("default", 0, "cpu", args.more).train, lr=3e-4),
        )
        for physics in (0.0, 1.0):
            model = train_denoiser(
                latents,
                metadata,
                replace(settings, train=gentle),
                Path(folder) / f"more_{physics}",
                vqvae,
                home,
                physics,
                trained,
            )
            rows.append(
                judge(
                    f"trained, {'1 + 2' if physics else '1'}",
                    model,
                    vqvae,
                    held,
                    truth,
                    args.draws,
                    False,
                )
            )
    best = {"acceptable": float(rules["acceptable"].mean())}
    write_json(
        Path(__file__).parent / "results" / "ablation.json",
        {
            "people": len(held),
            "draws": args.draws,
            "steps": args.steps,
            "codec_steps": args.codec_steps,
            "more_steps": args.more,
            "held_out": best,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
