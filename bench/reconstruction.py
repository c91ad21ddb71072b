"""Reconstruction against what else one could do: whole simulated blows of split test, cut at 1.5, 2 and 3 s; blows of the wide prior; whole blows; and recorded ATS waveforms, if a folder of them is given.

    python bench/reconstruction.py --run_dir runs/all [--waveforms FOLDER] [--draws 100] [--most 1200]

`run_dir` holds data/processed of the data set whose split test the weights have not seen. Writes bench/results/reconstruction.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from spiro_diffusion.base.files import sha256_of, shipped_weights, write_json
from spiro_diffusion.completion.model import Completion, draw_tails, whole_blows
from spiro_diffusion.completion.prior import wide_blows
from spiro_diffusion.completion.reconstruction import doubts, extrapolated_fvc, reconstruct
from spiro_diffusion.completion.truncation import POSITIONS, edge_at, look
from spiro_diffusion.data import load_prepared
from spiro_diffusion.formats.waveform import read_waveform
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.metrics.scores import bootstrap, covered
from spiro_diffusion.spirometry.clock import CLOCK, N_BINS, to_clock
from spiro_diffusion.spirometry.indices import INDICES, indices_on_clock
from spiro_diffusion.spirometry.reference import predicted

CUTS = (1.5, 2.0, 3.0)


def cut_flow(volume: np.ndarray, edge: int) -> np.ndarray:
    flow = np.diff(volume, axis=1) / np.diff(CLOCK)
    flow[:, edge:] = 0
    return np.maximum(flow, 0)


def seen_table(volume: np.ndarray, edge: int, who: pd.DataFrame) -> np.ndarray:
    """Indices of the observed part, flows just before the cut, age, height and sex."""
    table = indices_on_clock(cut_flow(volume, edge))[list(INDICES)]
    for window in (0.1, 0.25, 0.5):
        before = np.array([np.interp(CLOCK[edge] - window, CLOCK, v) for v in volume])
        table[f"flow{window}"] = (volume[:, edge] - before) / window
    return np.c_[
        table.to_numpy(), who.reindex(columns=["age", "height", "gender"]).to_numpy(dtype=float)
    ]


def drawn_fvc(
    model: Completion, volume: np.ndarray, edge: int, who: pd.DataFrame, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """FVC (N, draws) L, and whether the answer is to be trusted (N,)."""
    rows, parts = torch.from_numpy(volume.astype(np.float32)), []
    values = torch.from_numpy(encode_patients(who, model.settings.variables))
    generator = torch.Generator().manual_seed(0)
    for s in range(0, len(rows), 20):
        part = rows[s : s + 20]
        seen = look(part, torch.full((len(part),), edge), torch.ones(len(part), N_BINS))
        tails = draw_tails(
            model,
            seen,
            values[s : s + 20],
            torch.randn(len(part), draws, POSITIONS, generator=generator),
        )
        fvc = (seen.volume + tails[..., -1]).numpy()
        ends = pd.DataFrame(
            np.quantile(fvc, [0.05, 0.5, 0.95], axis=1, method="weibull").T,
            columns=["low", "median", "high"],
        )
        parts.append(
            (
                fvc,
                [
                    not doubts(row, float(far))
                    for (_, row), far in zip(ends.iterrows(), model.usual(seen.features))
                ],
            )
        )
    return tuple(map(np.concatenate, zip(*parts)))


def boosted(
    train: tuple[np.ndarray, np.ndarray],
    x: np.ndarray,
    losses: tuple[str, ...] = ("squared_error", "absolute_error"),
) -> dict[str, np.ndarray]:
    """FVC by gradient boosting: of FVC itself, and of ln(FVC / observed volume); squared and absolute loss."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    out = {}
    for loss in losses:
        fit = lambda y: HistGradientBoostingRegressor(
            loss=loss, max_iter=400, learning_rate=0.06, early_stopping=True, random_state=0
        ).fit(train[0], y)
        out[f"gradient boosting of FVC, {loss}"] = fit(train[1]).predict(x)
        out[f"gradient boosting of FVC / observed, {loss}"] = x[:, 0] * np.exp(
            fit(np.log(train[1] / train[0][:, 0])).predict(x)
        )
    return out


def nearest(train: np.ndarray, volume: np.ndarray, edge: int) -> np.ndarray:
    """FVC of the training blow whose course up to the cut is nearest, scaled to the observed volume."""
    known, course = (v[:, 1 : edge + 1 : 4] / v[:, [edge]] for v in (train, volume))
    squares, found = (known**2).sum(1), []
    for s in range(0, len(course), 256):
        found.append((squares - 2 * course[s : s + 256] @ known.T).argmin(1))
    i = np.concatenate(found)
    return volume[:, edge] * train[i, -1] / train[i, edge]


def errors(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    e = guess - truth
    return {
        "median_abs_l": float(np.median(np.abs(e))),
        "mean_abs_l": float(np.abs(e).mean()),
        "bias_percent": float(100 * (e / truth).mean()),
    }


def coverage(fvc: np.ndarray, truth: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    low, high = np.quantile(fvc, [0.05, 0.95], axis=1, method="weibull")
    inside = covered(fvc, truth)
    return {
        name: float(inside[rows].mean()) for name, rows in groups.items() if rows.sum() >= 30
    } | {"median_width_l": float(np.median(high - low))}


def coverage_interval(
    fvc: np.ndarray, truth: np.ndarray, groups: dict[str, np.ndarray], person: np.ndarray
) -> dict[str, list[float]]:
    """People in each group, and the 95 % interval of `coverage` bootstrapped over them: a person's blows stand or fall together."""
    table, out = pd.DataFrame({"person": person, "inside": covered(fvc, truth)}), {}
    for name, rows in groups.items():
        hits = table[rows].groupby("person")["inside"].agg(["sum", "count"]).to_numpy()
        if rows.sum() >= 30:
            out[name] = [
                len(hits),
                *bootstrap(lambda i: hits[i, 0].sum() / hits[i, 1].sum(), len(hits), 1000, 0),
            ]
    return out


def held_of_chosen(fvc: np.ndarray, fev1: np.ndarray, lln: np.ndarray) -> float:
    """What 90 % intervals hold of true FVC with FEV1/FVC < LLN if each is right: one half of the draws (N, D) stands for the truth, the other for the forecast.

    Who is in that group hangs on the true FVC, which is there larger than expected, so that it is fewer than 90 %.
    """
    half = fvc.shape[1] // 2
    truths = fvc[:, :half].T
    return float(covered(fvc[:, half:], truths)[fev1 / truths < lln].mean())


def trust(fvc: np.ndarray, truth: np.ndarray, trusted: np.ndarray) -> dict[str, float]:
    """How many answers are to be trusted, and how far off (in FVC) these and the others are."""
    off, found = np.abs(np.median(fvc, 1) / truth - 1), {"share_trusted": float(trusted.mean())}
    for name, rows in (("trusted", trusted), ("others", ~trusted)):
        if rows.any():
            found |= {
                f"median_off_{name}": float(np.median(off[rows])),
                f"off_by_a_tenth_{name}": float((off[rows] > 0.1).mean()),
            }
    return found


def groups_of(who: pd.DataFrame, obstructed: np.ndarray) -> dict[str, np.ndarray]:
    age = who["age"].to_numpy()
    bands = {
        f"age {a} to {b}": (age >= a) & (age <= b)
        for a, b in ((6, 12), (13, 19), (20, 39), (40, 59), (60, 80))
    }
    sexes = {"male": (who["gender"] == 1).to_numpy(), "female": (who["gender"] == 2).to_numpy()}
    return {
        "all": np.ones(len(who), dtype=bool),
        **sexes,
        **bands,
        "obstruction (FEV1/FVC < LLN)": obstructed,
    }


def ratios(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """The model's median absolute error over that of the best extrapolation and the best boosting."""
    mine, best = (
        table["this model"]["median_abs_l"],
        lambda *words: min(
            v["median_abs_l"] for k, v in table.items() if any(w in k for w in words)
        ),
    )
    return {
        "to extrapolation": mine / best("exponential", "power", "carried"),
        "to gradient boosting": mine / best("gradient"),
    }


def on_waveforms(
    folder: Path,
    model: Completion,
    train: np.ndarray,
    who: pd.DataFrame,
    wide: np.ndarray,
    draws: int,
) -> dict:
    """The recorded blows (05 and above), of persons unknown, cut at 1.5, 2 and 3 s, and whole."""
    files = [p for p in sorted(folder.glob("24*.wf")) if int(p.stem[2:]) >= 5]
    blows = [read_waveform(p) for p in files]
    flow = np.concatenate([to_clock(v, t) for v, t in blows])
    volume = np.c_[np.zeros(len(flow)), np.cumsum(flow * np.diff(CLOCK), 1)]
    truth, out = volume[:, -1], {"files": [p.stem for p in files]}
    nobody = lambda n: pd.DataFrame(np.nan, index=range(n), columns=["age", "height", "gender"])
    for stop in CUTS:
        edge = edge_at(stop)
        fvc, trusted = drawn_fvc(model, volume, edge, pd.DataFrame(index=range(len(flow))), draws)
        x, known = (
            seen_table(volume, edge, nobody(len(flow))),
            (seen_table(train, edge, who), train[:, -1]),
        )
        more = (
            np.r_[known[0], seen_table(wide, edge, nobody(len(wide)))],
            np.r_[known[1], wide[:, -1]],
        )
        fits = boosted(known, x, ("absolute_error",)) | {
            f"{k}, with the wide prior's blows": v
            for k, v in boosted(more, x, ("absolute_error",)).items()
        }
        guesses = {
            "this model": np.median(fvc, 1),
            **{
                h: extrapolated_fvc(cut_flow(volume, edge), CLOCK[edge], h)
                for h in ("carried", "exponential", "power")
            },
            **fits,
        }
        low, high = np.quantile(fvc, [0.05, 0.95], axis=1, method="weibull")
        table = {k: errors(g, truth) for k, g in guesses.items()}
        one_by_one = {
            "error_l": (np.median(fvc, 1) - truth).round(3).tolist(),
            "inside_90": ((low <= truth) & (truth <= high)).tolist(),
            "trusted": trusted.tolist(),
        }
        out[f"cut at {stop:g} s"] = {"fvc": table, "ratios": ratios(table), **one_by_one}
    whole = [(reconstruct(v, t, model=model, draws=20, seed=0), v) for v, t in blows]
    out["given whole"] = {
        p.stem: {
            "complete": r.complete,
            "change_ml": float(1000 * (r.table["fvc"].median() - v.max())),
        }
        for p, (r, v) in zip(files, whole)
    }
    return out


def given_whole(volume: np.ndarray, who: pd.DataFrame, model: Completion) -> dict[str, float]:
    """Blows of known length given to `reconstruct` as recorded, by how much their FVC changes."""
    change, complete = [], []
    for v, end, age, height, sex in zip(
        volume,
        who["n_points"] * 0.01,
        who["age"].clip(6, 79),
        who["height"].fillna(165.0),
        who["gender"],
    ):
        t = np.arange(0, min(end, CLOCK[-1]) + 1e-9, 0.01)
        made = reconstruct(
            np.interp(t, CLOCK, v),
            t,
            {"age": age, "height": height, "sex": int(sex)},
            draws=10,
            model=model,
        )
        change.append(1000 * (made.table["fvc"].median() - v[-1])), complete.append(made.complete)
    change, complete = np.array(change), np.array(complete)
    return {
        "blows": len(change),
        "taken_as_whole": float(complete.mean()),
        "within_10_ml": float((np.abs(change) <= 10).mean()),
        "within_10_ml_of_those_taken_as_whole": float((np.abs(change[complete]) <= 10).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", default="..")
    parser.add_argument("--waveforms")
    parser.add_argument("--weights")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--most", type=int, default=1200, help="blows of split test")
    args = parser.parse_args()
    flow, metadata = load_prepared(args.run_dir)
    folder = Path(args.weights) if args.weights else shipped_weights("completion")
    model = Completion.from_pretrained(folder)
    (train, trained), (test, who) = (whole_blows(flow, metadata, s) for s in ("train", "test"))
    some = np.sort(np.random.default_rng(0).permutation(len(test))[: args.most])
    train, volume, who = (
        train.double().numpy(),
        test.double().numpy()[some],
        who.iloc[some].reset_index(drop=True),
    )
    strange = wide_blows(300, volume, 2).astype(float)
    whole, lln = (
        indices_on_clock(cut_flow(volume, N_BINS)),
        predicted(who, ("fev1_fvc",))["fev1_fvc_lln"].to_numpy(),
    )
    truth, fev1 = volume[:, -1], whole["fev1"].to_numpy()
    groups, result = (
        groups_of(who, whole["fev1_fvc"].to_numpy() < lln),
        {
            "weights_sha256": sha256_of(folder / "model.safetensors"),
            "blows": len(some),
            "draws": args.draws,
        },
    )
    for stop in CUTS:
        edge = edge_at(stop)
        fvc, trusted = drawn_fvc(model, volume, edge, who, args.draws)
        guesses = {
            "this model": np.median(fvc, 1),
            **{
                h: extrapolated_fvc(cut_flow(volume, edge), CLOCK[edge], h)
                for h in ("carried", "exponential", "power")
            },
        }
        guesses |= boosted(
            (seen_table(train, edge, trained), train[:, -1]), seen_table(volume, edge, who)
        )
        guesses |= {
            "nearest training blow": nearest(train, volume, edge),
            "FEV6, had it been blown": whole["fev6"].to_numpy(),
        }
        table = {k: errors(g, truth) for k, g in guesses.items()}
        groups["obstruction in the forecast (median)"] = fev1 / np.median(fvc, 1) < lln
        result[f"cut at {stop:g} s"] = {
            "fvc": table,
            "ratios": ratios(table),
            "in_90": coverage(fvc, truth, groups),
            "in_90_people_low_high": coverage_interval(fvc, truth, groups, who["SEQN"].to_numpy()),
            "right_would_hold_of_obstruction": held_of_chosen(fvc, fev1, lln),
            "trust": trust(fvc, truth, trusted),
        }
        print(
            stop,
            pd.DataFrame(table).T.round(4).to_string(),
            *list(result[f"cut at {stop:g} s"].values())[1:],
            sep="\n",
            flush=True,
        )
        fvc, trusted = drawn_fvc(
            model, strange, edge, pd.DataFrame(index=range(len(strange))), args.draws
        )
        found = {
            h: errors(extrapolated_fvc(cut_flow(strange, edge), CLOCK[edge], h), strange[:, -1])
            for h in ("exponential", "power")
        }
        found |= {"this model": errors(np.median(fvc, 1), strange[:, -1])} | coverage(
            fvc, strange[:, -1], {"in_90": np.ones(len(strange), dtype=bool)}
        )
        result[f"cut at {stop:g} s"]["blows of the wide prior"] = found | {
            "trust": trust(fvc, strange[:, -1], trusted)
        }
        print(result[f"cut at {stop:g} s"]["blows of the wide prior"], flush=True)
    result["given whole"] = given_whole(volume[:300], who.iloc[:300], model)
    print(result["given whole"], flush=True)
    if args.waveforms:
        result["ats24"] = on_waveforms(
            Path(args.waveforms),
            model,
            train,
            trained,
            wide_blows(round(0.8 * len(train)), train, 1),
            100,
        )
        print(result["ats24"])
    clock = np.linspace(0, 2, 201)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        reconstruct(
            np.interp(clock, CLOCK, volume[0]),
            clock,
            {"age": 45, "height": 170, "sex": "male"},
            draws=100,
            weights=args.weights,
        )
        seconds.append(time.perf_counter() - start)
    result["seconds_for_100_draws"] = float(np.median(seconds))
    write_json(Path(__file__).parent / "results" / "reconstruction.json", result)
    print("100 draws in", np.round(seconds, 2), "s")


if __name__ == "__main__":
    main()
