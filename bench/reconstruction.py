"""Reconstruction against what else one could do.

    python bench/reconstruction.py --run_dir runs/all [--data_dir NHANES] [--waveforms FOLDER]
        [--draws 100] [--most 1200]

Whole simulated blows of split test, cut at 1.5, 2 and 3 s; blows of the wide prior; whole blows;
recorded loops, where there is a table of them among the NHANES files or beside; and recorded ATS
waveforms, if a folder of them is given. `run_dir` holds data/processed of the data set whose split
test the weights have not seen. Writes bench/results/reconstruction.json; of recordings only
summaries.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spiro_diffusion.base.files import sha256_of, shipped_weights, write_json
from spiro_diffusion.completion.model import Completion, draw_tails, whole_blows
from spiro_diffusion.completion.prior import wide_blows
from spiro_diffusion.completion.reconstruction import doubts, extrapolated_fvc, reconstruct
from spiro_diffusion.completion.truncation import POSITIONS, edge_at, look
from spiro_diffusion.data import find_recorded, load_prepared
from spiro_diffusion.formats.waveform import read_waveform
from spiro_diffusion.learning.conditions import encode_patients
from spiro_diffusion.metrics.completions import recorded_table, volume_scores
from spiro_diffusion.metrics.scores import bootstrap, covered
from spiro_diffusion.simulator.recorded import read_recorded
from spiro_diffusion.spirometry.clock import CLOCK, N_BINS, WIDTHS, to_clock, volume_on_clock
from spiro_diffusion.spirometry.indices import INDICES, indices_on_clock
from spiro_diffusion.spirometry.reference import predicted

CUTS = (1.5, 2.0, 3.0)  # s
EXTRAPOLATIONS = ("carried", "exponential", "power")
SQUARED_AND_ABSOLUTE = ("squared_error", "absolute_error")  # losses of the boosting
AGE_BANDS = ((6, 12), (13, 19), (20, 39), (40, 59), (60, 80))  # years
FEWEST = 30  # blows of a group of which coverage is given
BATCH = 20  # blows drawn at a time: few enough for the processor's cache
WIDE_BLOWS = 300  # blows of the wide prior that are cut
GIVEN_WHOLE = 300  # blows that are given whole
FIRST_WAVEFORM = 5  # of the 24 ATS waveforms: recorded ones are used, 05 and above


@dataclass(frozen=True)
class Blows:
    """Whole blows and who blew them."""

    volume: np.ndarray  # (N, 513) L
    who: pd.DataFrame  # age, gender, height; no columns where persons are unknown

    @property
    def fvc(self) -> np.ndarray:
        return self.volume[:, -1]

    def __len__(self) -> int:
        return len(self.volume)


@dataclass(frozen=True)
class Drawn:
    """What the model says of N blows that were cut."""

    fvc: np.ndarray  # (N, draws) L
    trusted: np.ndarray  # (N,) bool

    @property
    def median(self) -> np.ndarray:
        return np.median(self.fvc, 1)

    @property
    def interval(self) -> np.ndarray:
        """Low and high of the 90 % interval, (2, N) L."""
        return np.quantile(self.fvc, [0.05, 0.95], axis=1, method="weibull")


def of_nobody(volume: np.ndarray) -> Blows:
    return Blows(volume, pd.DataFrame(index=range(len(volume))))


def together(first: Blows, second: Blows) -> Blows:
    return Blows(
        np.concatenate([first.volume, second.volume]),
        pd.concat([first.who, second.who], ignore_index=True),
    )


# What each method sees


def cut_flow(volume: np.ndarray, edge: int) -> np.ndarray:
    """Flow (N, 512) L/s of volume (N, 513) L up to an edge of the clock."""
    flow = np.diff(volume, axis=1) / WIDTHS
    flow[:, edge:] = 0
    return np.maximum(flow, 0)


def seen_table(blows: Blows, edge: int) -> np.ndarray:
    """Indices of the observed part, flows just before the cut, age, height and sex."""
    table = indices_on_clock(cut_flow(blows.volume, edge))[list(INDICES)]
    for window in (0.1, 0.25, 0.5):
        before = np.array([np.interp(CLOCK[edge] - window, CLOCK, v) for v in blows.volume])
        table[f"flow{window}"] = (blows.volume[:, edge] - before) / window
    person = blows.who.reindex(columns=["age", "height", "gender"]).to_numpy(dtype=float)
    return np.c_[table.to_numpy(), person]


# Methods


def drawn_fvc(model: Completion, blows: Blows, edge: int, draws: int) -> Drawn:
    """FVC of blows cut at an edge of the clock, drawn by the model."""
    volume = torch.from_numpy(blows.volume.astype(np.float32))
    values = torch.from_numpy(encode_patients(blows.who, model.settings.variables))
    generator = torch.Generator().manual_seed(0)
    fvc = []
    unlike = []
    for start in range(0, len(volume), BATCH):
        part = volume[start : start + BATCH]
        seen = look(part, torch.full((len(part),), edge), torch.ones(len(part), N_BINS))
        noise = torch.randn(len(part), draws, POSITIONS, generator=generator)
        tails = draw_tails(model, seen, values[start : start + BATCH], noise)
        fvc.append((seen.volume + tails[..., -1]).numpy())
        unlike.append(model.usual(seen.features).numpy())
    drawn = np.concatenate(fvc)
    ends = np.quantile(drawn, [0.05, 0.5, 0.95], axis=1, method="weibull").T
    table = pd.DataFrame(ends, columns=["low", "median", "high"])
    trusted = [
        not doubts(row, float(distance))
        for (_, row), distance in zip(table.iterrows(), np.concatenate(unlike), strict=True)
    ]
    return Drawn(drawn, np.array(trusted))


def boosted(
    train: Blows, test: Blows, edge: int, losses: tuple[str, ...] = SQUARED_AND_ABSOLUTE
) -> dict[str, np.ndarray]:
    """FVC by gradient boosting: of FVC itself, and of ln(FVC / observed volume)."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    x_train = seen_table(train, edge)
    x_test = seen_table(test, edge)

    def predict(loss: str, target: np.ndarray) -> np.ndarray:
        regressor = HistGradientBoostingRegressor(
            loss=loss, max_iter=400, learning_rate=0.06, early_stopping=True, random_state=0
        )
        return regressor.fit(x_train, target).predict(x_test)

    guesses = {}
    for loss in losses:
        guesses[f"gradient boosting of FVC, {loss}"] = predict(loss, train.fvc)
        ratio = np.exp(predict(loss, np.log(train.fvc / x_train[:, 0])))
        guesses[f"gradient boosting of FVC / observed, {loss}"] = x_test[:, 0] * ratio
    return guesses


def nearest(train: Blows, test: Blows, edge: int) -> np.ndarray:
    """FVC of the training blow whose course is nearest, scaled to the volume at the cut."""
    known = train.volume[:, 1 : edge + 1 : 4] / train.volume[:, [edge]]
    course = test.volume[:, 1 : edge + 1 : 4] / test.volume[:, [edge]]
    squares = (known**2).sum(1)
    found = [
        (squares - 2 * course[start : start + 256] @ known.T).argmin(1)
        for start in range(0, len(course), 256)
    ]
    twin = np.concatenate(found)
    return test.volume[:, edge] * train.fvc[twin] / train.volume[twin, edge]


def extrapolated(
    blows: Blows, edge: int, methods: tuple[str, ...] = EXTRAPOLATIONS
) -> dict[str, np.ndarray]:
    flow = cut_flow(blows.volume, edge)
    return {name: extrapolated_fvc(flow, CLOCK[edge], name) for name in methods}


# What is measured


def errors(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    error = guess - truth
    return {
        "median_abs_l": float(np.median(np.abs(error))),
        "mean_abs_l": float(np.abs(error).mean()),
        "bias_percent": float(100 * (error / truth).mean()),
    }


def ratios(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """The model's median absolute error over that of the best extrapolation and boosting."""

    def smallest(*words: str) -> float:
        return min(
            found["median_abs_l"]
            for method, found in table.items()
            if any(word in method for word in words)
        )

    own = table["this model"]["median_abs_l"]
    return {
        "to extrapolation": own / smallest(*EXTRAPOLATIONS),
        "to gradient boosting": own / smallest("gradient"),
    }


def coverage(drawn: Drawn, truth: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Share of each group in the 90 % intervals, and how wide these are."""
    inside = covered(drawn.fvc, truth)
    found = {
        name: float(inside[rows].mean()) for name, rows in groups.items() if rows.sum() >= FEWEST
    }
    low, high = drawn.interval
    return {**found, "median_width_l": float(np.median(high - low))}


def coverage_interval(
    drawn: Drawn, truth: np.ndarray, groups: dict[str, np.ndarray], person: np.ndarray
) -> dict[str, list[float]]:
    """People in each group, and the 95 % interval of `coverage` bootstrapped over them.

    A person's blows stand or fall together.
    """
    table = pd.DataFrame({"person": person, "inside": covered(drawn.fvc, truth)})
    found = {}
    for name, rows in groups.items():
        if rows.sum() < FEWEST:
            continue
        hits = table[rows].groupby("person")["inside"].agg(["sum", "count"]).to_numpy()

        def share(people: np.ndarray, hits: np.ndarray = hits) -> float:
            return hits[people, 0].sum() / hits[people, 1].sum()

        found[name] = [len(hits), *bootstrap(share, len(hits), 1000, 0)]
    return found


def held_of_chosen(drawn: Drawn, fev1: np.ndarray, lln: np.ndarray) -> float:
    """What right 90 % intervals would cover of true FVC of those with FEV1/FVC < LLN.

    One half of the draws stands for the truth, the other for the forecast. Who is in that group
    hangs on the true FVC, which is larger there than expected, so that it is less than 90 %.
    """
    half = drawn.fvc.shape[1] // 2
    truths = drawn.fvc[:, :half].T
    return float(covered(drawn.fvc[:, half:], truths)[fev1 / truths < lln].mean())


def trust(drawn: Drawn, truth: np.ndarray) -> dict[str, float]:
    """How many answers are to be trusted, and how far off (in FVC) these and the others are."""
    off = np.abs(drawn.median / truth - 1)
    found = {"share_trusted": float(drawn.trusted.mean())}
    for name, rows in (("trusted", drawn.trusted), ("others", ~drawn.trusted)):
        if rows.any():
            found[f"median_off_{name}"] = float(np.median(off[rows]))
            found[f"off_by_a_tenth_{name}"] = float((off[rows] > 0.1).mean())
    return found


def groups_of(who: pd.DataFrame, obstructed: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (N,) of those whose coverage is given."""
    age = who["age"].to_numpy()
    groups = {
        "all": np.ones(len(who), dtype=bool),
        "male": (who["gender"] == 1).to_numpy(),
        "female": (who["gender"] == 2).to_numpy(),
    }
    for low, high in AGE_BANDS:
        groups[f"age {low} to {high}"] = (age >= low) & (age <= high)
    groups["obstruction (FEV1/FVC < LLN)"] = obstructed
    return groups


# Parts of the result


def cut_at(stop: float, model: Completion, train: Blows, test: Blows, draws: int) -> dict[str, Any]:
    """Blows of split test cut at `stop` s."""
    edge = edge_at(stop)
    drawn = drawn_fvc(model, test, edge, draws)
    index = indices_on_clock(cut_flow(test.volume, N_BINS))
    fev1 = index["fev1"].to_numpy()
    lln = predicted(test.who, ("fev1_fvc",))["fev1_fvc_lln"].to_numpy()
    guesses = {
        "this model": drawn.median,
        **extrapolated(test, edge),
        **boosted(train, test, edge),
        "nearest training blow": nearest(train, test, edge),
        "FEV6, had it been blown": index["fev6"].to_numpy(),
    }
    table = {name: errors(guess, test.fvc) for name, guess in guesses.items()}
    groups = groups_of(test.who, index["fev1_fvc"].to_numpy() < lln)
    groups["obstruction in the forecast (median)"] = fev1 / drawn.median < lln
    person = test.who["SEQN"].to_numpy()
    obstruction = {
        name: volume_scores(drawn.fvc[rows], test.fvc[rows], person[rows])
        for name, rows in groups.items()
        if "obstruction" in name and rows.any()
    }
    return {
        "fvc": table,
        "ratios": ratios(table),
        "in_90": coverage(drawn, test.fvc, groups),
        "in_90_people_low_high": coverage_interval(drawn, test.fvc, groups, person),
        "obstruction": obstruction,
        "right_would_hold_of_obstruction": held_of_chosen(drawn, fev1, lln),
        "trust": trust(drawn, test.fvc),
    }


def wide_cut_at(stop: float, model: Completion, strange: Blows, draws: int) -> dict[str, Any]:
    """Blows of the wide prior cut at `stop` s."""
    edge = edge_at(stop)
    drawn = drawn_fvc(model, strange, edge, draws)
    guesses = {
        **extrapolated(strange, edge, ("exponential", "power")),
        "this model": drawn.median,
    }
    everyone = np.ones(len(strange), dtype=bool)
    return {
        **{name: errors(guess, strange.fvc) for name, guess in guesses.items()},
        **coverage(drawn, strange.fvc, {"in_90": everyone}),
        "trust": trust(drawn, strange.fvc),
    }


def given_whole(blows: Blows, model: Completion) -> dict[str, float]:
    """Blows of known length given to `reconstruct` as recorded: by how much their FVC changes."""
    people = pd.DataFrame(
        {
            "age": blows.who["age"].clip(6, 79),
            "height": blows.who["height"].fillna(165.0),
            "sex": blows.who["gender"].astype(int),
        }
    ).to_dict("records")
    ends = np.minimum(blows.who["n_points"] * 0.01, CLOCK[-1])
    changes = []
    completes = []
    for volume, end, person in zip(blows.volume, ends, people, strict=True):
        t = np.arange(0, end + 1e-9, 0.01)
        made = reconstruct(np.interp(t, CLOCK, volume), t, person, draws=10, model=model)
        changes.append(1000 * (made.table["fvc"].median() - volume[-1]))
        completes.append(made.complete)
    within = np.abs(changes) <= 10  # mL
    complete = np.array(completes)
    return {
        "blows": len(blows),
        "taken_as_whole": float(complete.mean()),
        "within_10_ml": float(within.mean()),
        "within_10_ml_of_those_taken_as_whole": float(within[complete].mean()),
    }


def waveform_cut_at(
    stop: float, model: Completion, train: Blows, with_wide: Blows, recorded: Blows
) -> dict[str, Any]:
    """Recorded blows cut at `stop` s."""
    edge = edge_at(stop)
    drawn = drawn_fvc(model, recorded, edge, 100)
    more = boosted(with_wide, recorded, edge, ("absolute_error",))
    guesses = {
        "this model": drawn.median,
        **extrapolated(recorded, edge),
        **boosted(train, recorded, edge, ("absolute_error",)),
        **{f"{name}, with the wide prior's blows": guess for name, guess in more.items()},
    }
    table = {name: errors(guess, recorded.fvc) for name, guess in guesses.items()}
    low, high = drawn.interval
    return {
        "fvc": table,
        "ratios": ratios(table),
        "error_l": (drawn.median - recorded.fvc).round(3).tolist(),
        "inside_90": ((low <= recorded.fvc) & (recorded.fvc <= high)).tolist(),
        "trusted": drawn.trusted.tolist(),
    }


def on_waveforms(folder: Path, model: Completion, train: Blows) -> dict[str, Any]:
    """The recorded blows, of persons unknown, cut at 1.5, 2 and 3 s, and whole."""
    files = [p for p in sorted(folder.glob("24*.wf")) if int(p.stem[2:]) >= FIRST_WAVEFORM]
    curves = [read_waveform(p) for p in files]
    flow = np.concatenate([to_clock(volume, t) for volume, t in curves])
    recorded = of_nobody(volume_on_clock(flow))
    wide = wide_blows(round(0.8 * len(train)), train.volume, 1)
    with_wide = together(train, of_nobody(wide))
    found: dict[str, Any] = {"files": [p.stem for p in files]}
    for stop in CUTS:
        found[f"cut at {stop:g} s"] = waveform_cut_at(stop, model, train, with_wide, recorded)
    whole = {}
    for p, (volume, t) in zip(files, curves, strict=True):
        made = reconstruct(volume, t, model=model, draws=20, seed=0)
        change = float(1000 * (made.table["fvc"].median() - volume.max()))
        whole[p.stem] = {"complete": made.complete, "change_ml": change}
    return {**found, "given whole": whole}


def seconds_for_100_draws(volume: np.ndarray, weights: str | None) -> list[float]:
    """Three times, loading included, for one blow (513,) L cut at 2 s."""
    t = np.linspace(0, 2, 201)
    person = {"age": 45, "height": 170, "sex": "male"}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        reconstruct(np.interp(t, CLOCK, volume), t, person, draws=100, weights=weights)
        seconds.append(time.perf_counter() - start)
    return seconds


def read_blows(run_dir: str, most: int) -> tuple[Blows, Blows]:
    """Whole blows of split train, and at most so many of split test."""
    flow, metadata = load_prepared(run_dir)
    volume, who = whole_blows(flow, metadata, "train")
    train = Blows(volume.double().numpy(), who)
    volume, who = whole_blows(flow, metadata, "test")
    some = np.sort(np.random.default_rng(0).permutation(len(volume))[:most])
    test = Blows(volume.double().numpy()[some], who.iloc[some].reset_index(drop=True))
    return train, test


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", default="..")
    parser.add_argument("--data_dir", default="", help="of NHANES, where loops are looked for too")
    parser.add_argument("--waveforms")
    parser.add_argument("--weights")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--most", type=int, default=1200, help="blows of split test")
    return parser.parse_args()


def show(stop: float, found: dict[str, Any]) -> None:
    print(f"cut at {stop:g} s")
    for name, part in found.items():
        is_table = name == "fvc"
        print(pd.DataFrame(part).T.round(4).to_string() if is_table else part, flush=True)


def main() -> None:
    args = arguments()
    folder = Path(args.weights) if args.weights else shipped_weights("completion")
    model = Completion.from_pretrained(folder)
    train, test = read_blows(args.run_dir, args.most)
    strange = of_nobody(wide_blows(WIDE_BLOWS, test.volume, 2).astype(float))
    result: dict[str, Any] = {
        "weights_sha256": sha256_of(folder / "model.safetensors"),
        "blows": len(test),
        "draws": args.draws,
    }
    for stop in CUTS:
        found = cut_at(stop, model, train, test, args.draws)
        found["blows of the wide prior"] = wide_cut_at(stop, model, strange, args.draws)
        show(stop, found)
        result[f"cut at {stop:g} s"] = found
    first = Blows(test.volume[:GIVEN_WHOLE], test.who.iloc[:GIVEN_WHOLE])
    result["given whole"] = given_whole(first, model)
    print(result["given whole"], flush=True)
    if loops := find_recorded(args.data_dir, args.run_dir):
        table = recorded_table(model, read_recorded(loops), draws=args.draws)
        result["recorded"] = table.to_dict("index")
        print(table.round(3).to_string(), flush=True)
    if args.waveforms:
        result["ats24"] = on_waveforms(Path(args.waveforms), model, train)
        print(result["ats24"])
    seconds = seconds_for_100_draws(test.volume[0], args.weights)
    result["seconds_for_100_draws"] = float(np.median(seconds))
    write_json(Path(__file__).parent / "results" / "reconstruction.json", result)
    print("100 draws in", np.round(seconds, 2), "s")


if __name__ == "__main__":
    main()
