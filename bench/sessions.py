"""Generated sessions beside simulated and recorded ones, and how fast they are drawn.

    python bench/sessions.py --run_dir runs/all [--data_dir DATA] [--loops FOLDER]
        [--people 600] [--visits 3] [--rounds 5]
        [--stand_in] [--figure FOLDER] [--out FILE]

`run_dir` holds data/processed, for whose held-out people sessions are generated and simulated;
`loops` is looked for in or beside `data_dir` and `run_dir` if not given; SPX_G, DEMO_G and BMX_G,
with which changes after a bronchodilator are compared, are looked for in `data_dir`. What is not
there is left out, and the results say so. `stand_in` puts simulated sessions of another seed in the
place of generated ones: what a generator as good as the simulator reaches. Writes
bench/results/sessions.json: numbers with how many people they are of, and nothing of any one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import write_json
from spiro_diffusion.data import find_recorded, load_prepared
from spiro_diffusion.formats.loops import read_loops
from spiro_diffusion.generation.drawing import Models, load_models
from spiro_diffusion.generation.session import draw_like, generate_sessions
from spiro_diffusion.inference import generate
from spiro_diffusion.metrics.figures import save_figure
from spiro_diffusion.metrics.sessions import (
    Beside,
    ReportSettings,
    Trials,
    bronchodilator_changes,
    figure_order,
    given_first,
    measure_trials,
    published_changes,
    second_tests,
    session_aims,
    session_table,
    sessions_report,
    trials_of_recordings,
    trials_of_simulated,
)
from spiro_diffusion.simulator.people import simulate_people
from spiro_diffusion.simulator.recorded import find_loops
from spiro_diffusion.simulator.session import simulate_blows
from spiro_diffusion.spirometry.reference import sex_of, zscores

RESULTS = Path(__file__).parent / "results" / "sessions.json"
HELD_OUT = ("val", "test")
CURVES = 8
"""Manoeuvres of the session that is timed, and curves beside it."""
TIMED = (1, 128)
"""Patients that are drawn at once while the time is taken."""
ASKED = ("age", "height", "sex")
"""What a generator is told of a patient."""
USUAL_MASS_INDEX = 24
"""kg/m², of people whose weight is not known."""
WHITE = 3
"""RIDRETH1 of people whose group is not known."""
EXTREME_Z = (-4.0, 2.0)
"""Z-scores of FEV1/FVC that are requested: more extreme ones are brought to these."""
FIRST_SIMULATED = 900_001
"""SEQN of the first simulated person of a stand-in."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", default="..")
    parser.add_argument("--data_dir", default="", help="folder with SPX_G.XPT, DEMO_G and BMX_G")
    parser.add_argument("--loops", help="folder with a table of recorded loops")
    parser.add_argument("--people", type=int, default=600, help="held-out people, at most")
    parser.add_argument("--visits", type=int, default=3, help="sessions of each recorded person")
    parser.add_argument("--times", type=int, default=300, help="bootstrap")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--stand_in", action="store_true")
    parser.add_argument("--figure", help="folder for the figure")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def patients_of(trials: Trials) -> pd.DataFrame:
    """Who made the trials: patient, age, height, sex, a row a patient."""
    first = trials.table.groupby("patient", sort=False)[list(ASKED)].first()
    return first.reset_index()


def simulated_for(patients: pd.DataFrame, sessions: int, seed: int) -> Trials:
    """Simulated people of the same age, height and sex, each with so many sessions.

    Weight and ethnicity are the patients' where known.
    """
    many = patients.loc[patients.index.repeat(sessions)].reset_index(drop=True)
    body = many[["age", "height"]].astype(float)
    body["SEQN"] = FIRST_SIMULATED + np.arange(len(many))
    body["gender"] = sex_of(many)
    body["weight"] = many.get("weight", np.nan)
    body["weight"] = body["weight"].fillna(USUAL_MASS_INDEX * (body["height"] / 100) ** 2)
    body["ethnicity"] = many.get("ethnicity", WHITE)
    people = simulate_people(body, seed)
    return trials_of_simulated(simulate_blows(people, seed), people, many["patient"].to_numpy())


def made_for(
    patients: pd.DataFrame, sessions: int, post: bool, models: Models, args: argparse.Namespace
) -> Trials:
    """Generated sessions of patients (patient, age, height, sex), or what stands in for them."""
    if args.stand_in:
        return simulated_for(patients, sessions, args.seed + 1)
    made = generate_sessions(
        patients,
        sessions,
        args.seed,
        post=post,
        models=models,
        device=args.device,
        extrapolate=True,
    )
    return measure_trials(made.trials, made.flow)


def held_out(args: argparse.Namespace) -> pd.DataFrame | None:
    """Held-out people of the run (patient, age, height, sex, weight, ethnicity), if prepared."""
    try:
        _, metadata = load_prepared(args.run_dir)
    except DataError as err:
        print(f"no held-out people: {err}")
        return None
    rows = metadata[metadata["split"].isin(HELD_OUT) & metadata["height"].notna()]
    people = rows.drop_duplicates("SEQN").rename(columns={"SEQN": "patient", "gender": "sex"})
    columns = [c for c in ("patient", *ASKED, "weight", "ethnicity") if c in people]
    some = people[columns].sample(min(args.people, len(people)), random_state=args.seed)
    return some.reset_index(drop=True)


def comparisons(models: Models, args: argparse.Namespace) -> dict[str, Beside]:
    """Made sessions beside simulated ones of held-out people, and beside recorded ones."""
    found = {}
    if (people := held_out(args)) is not None:
        made = made_for(people[["patient", *ASKED]], 1, True, models, args)
        found["simulated"] = Beside(made, simulated_for(people, 1, args.seed))
    loops = args.loops or find_recorded(args.data_dir, args.run_dir)
    if loops is not None and (path := find_loops(loops)) is not None:
        recorded = trials_of_recordings(read_loops(path))
        made = made_for(patients_of(recorded), args.visits, False, models, args)
        found["recorded"] = Beside(made, recorded)
    return found


def changes_for(models: Models, args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """FEV1's published changes after a bronchodilator, and those of generated people like them.

    The generated ones have the age, height and sex of those who were tested twice, and their
    FEV1/FVC of the first test is requested.
    """
    if not (Path(args.data_dir) / "SPX_G.XPT").is_file():
        return {}
    tested = second_tests(args.data_dir)
    found = {"published": published_changes(args.data_dir)}
    if args.stand_in:
        return found
    some = tested.sample(min(args.people, len(tested)), random_state=args.seed)
    some = some.reset_index(drop=True)
    who = some[["patient", *ASKED]]
    ratio = (some["fev1_best"] / some["fvc_best"]).clip(upper=1)
    who = who.assign(fev1_fvc_z=zscores(who.assign(fev1_fvc=ratio))["fev1_fvc_z"].clip(*EXTREME_Z))
    made = made_for(who, 1, True, models, args)
    return found | {"generated": bronchodilator_changes(session_table(made))}


def repeats_given(simulated: Trials, models: Models, args: argparse.Namespace) -> dict[str, Any]:
    """Trees that see a simulated trial beside its repeat, generated or only through the codec."""

    def generated(people, known, litres, other):
        return draw_like(people, known, litres, models, args.seed, args.device)

    def codec(people, known, litres, other):
        return models.vqvae.decode_latents(models.vqvae.latents(other), quantise=False)

    ways = {"generated": generated, "as the codec keeps it": codec}
    return given_first(simulated, ways, args.seed, args.times)


def speed(models: Models, rounds: int) -> list[dict[str, Any]]:
    """Processor time of tests of eight over that of eight curves, which take turns."""
    rows = []
    for patients in TIMED:
        table = pd.DataFrame({"age": np.linspace(20, 75, patients), "height": 170.0, "sex": 1})
        seconds = np.empty((rounds + 1, 2))
        for k in range(rounds + 1):
            start = time.process_time()
            generate_sessions(table, 1, k, manoeuvres=CURVES, models=models)
            middle = time.process_time()
            generate(table, CURVES, k, models=models)
            seconds[k] = middle - start, time.process_time() - middle
        ratios = seconds[1:, 0] / seconds[1:, 1]
        each = 1000 * np.median(seconds[1:], axis=0) / patients
        rows.append(
            {
                "patients": patients,
                "threads": torch.get_num_threads(),
                "rounds": rounds,
                "test_cpu_ms": float(each[0]),
                "curves_cpu_ms": float(each[1]),
                "ratio": float(np.median(ratios)),
            }
        )
    return rows


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    start = time.perf_counter()
    models = load_models(args.run_dir)
    beside = comparisons(models, args)
    if not beside:
        raise SystemExit("there is nothing to compare: give --run_dir or --loops")
    changes = changes_for(models, args)
    settings = ReportSettings(args.seed, args.times)
    numbers = sessions_report(beside, changes, settings)
    if "simulated" in beside and not args.stand_in:
        numbers["given_first"] = repeats_given(beside["simulated"].other, models, args)
    numbers |= {
        "stand_in": args.stand_in,
        "left_out": [
            name
            for name, there in (
                ("simulated sessions", "simulated" in beside),
                ("recorded sessions", "recorded" in beside),
                ("changes after a bronchodilator", bool(changes)),
            )
            if not there
        ],
        "weights_sha256": models.sha256,
        "speed": speed(models, args.rounds) if args.rounds and not args.stand_in else [],
        "seconds": round(time.perf_counter() - start),
    }
    numbers["aims"] = [aim._asdict() for aim in session_aims(numbers)]
    write_json(args.out, numbers)
    for aim in session_aims(numbers):
        met = "met" if aim.low <= aim.value <= aim.high else "MISSED"
        print(f"{met:7}{aim.value:.4g} ({aim.low:g} to {aim.high:g})  {aim.title}")
    if args.figure:
        kinds = {}
        for name, pair in beside.items():
            kinds |= {name: pair.other, f"generated, as {name}": pair.made}
        note = f"Source: {', '.join(beside)} sessions and models as shipped; seed {args.seed}."
        save_figure(figure_order(kinds, note), args.figure, "sessions_order", ("png",))


if __name__ == "__main__":
    main()
