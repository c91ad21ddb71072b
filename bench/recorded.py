"""The models on recorded manoeuvres.

    python bench/recorded.py --run_dir runs/all [--loops FOLDER] [--weights FOLDER]
        [--waveforms FOLDER] [--device_file FILE] [--draws 400] [--figure FOLDER]

Codec, shapes at equal indices, classifiers and utility on recorded loops, see `metrics.recordings`.
`run_dir` holds data/processed of the data set whose training split simulated and generated curves
to learn from are of; `loops` is looked for beside it if not given. Also codec errors on ATS
waveforms and on a device's file, if they are given. Writes bench/results/recorded.json: numbers
with how many people they are of, and nothing of any one of them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from spiro_diffusion.base.files import write_json
from spiro_diffusion.data import find_recorded, load_prepared, no_recorded
from spiro_diffusion.formats.recognise import read_recordings
from spiro_diffusion.formats.waveform import read_waveform
from spiro_diffusion.generation.drawing import Models, load_models
from spiro_diffusion.metrics.figures import save_figure
from spiro_diffusion.metrics.recordings import (
    FIGURE_NAME,
    ReportSettings,
    figure_same_people,
    loops_of_same_people,
    recorded_aims,
    recordings_report,
    survey_curves,
)
from spiro_diffusion.simulator.recorded import Recorded, read_recorded
from spiro_diffusion.spirometry.clock import to_clock

FIRST_WAVEFORM = 5  # of the 24 ATS waveforms: recorded ones are used, 05 and above
HELD_OUT = ("val", "test")
PEOPLE_SHOWN = 5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", default="..")
    parser.add_argument("--loops", help="folder with a table of recorded loops")
    parser.add_argument("--weights", help="folder that holds vqvae and cldm")
    parser.add_argument("--waveforms", help="folder with ATS waveforms, 24*.wf")
    parser.add_argument("--device_file", help="recordings of one device")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--kept", type=int, default=48, help="draws at like BEV")
    parser.add_argument("--simulated", type=int, default=24)
    parser.add_argument("--trials", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--figure", help="folder for the figure, which shows recorded persons")
    return parser.parse_args()


def codec_sets(args: argparse.Namespace, held: np.ndarray) -> dict[str, np.ndarray]:
    """What the codec encodes beside the recorded loops."""
    sets = {"held out, simulated": held}
    if args.waveforms:
        files = sorted(Path(args.waveforms).glob("24*.wf"))
        read = [read_waveform(p) for p in files if int(p.stem[2:]) >= FIRST_WAVEFORM]
        sets["ATS waveforms"] = np.concatenate([to_clock(volume, t) for volume, t in read])
    if args.device_file:
        recordings = read_recordings(args.device_file)
        sets["device file"] = np.concatenate([to_clock(r.volume, r.time) for r in recordings])
    return sets


def read_loops(args: argparse.Namespace) -> Recorded:
    """The recorded loops. Exits if there are none."""
    folder = args.loops or find_recorded("", args.run_dir)
    if folder is None:
        raise SystemExit(no_recorded("", args.run_dir))
    return read_recorded(folder)


def draw_figure(args: argparse.Namespace, recorded: Recorded, models: Models) -> None:
    """The figure of the same people, which stays with whoever has the recordings."""
    loops = loops_of_same_people(recorded, models, PEOPLE_SHOWN, args.seed, args.device)
    note = f"Source: recorded loops and models of this run; seed {args.seed}."
    save_figure(figure_same_people(loops, note), args.figure, FIGURE_NAME, ("png",))


def main() -> None:
    args = arguments()
    start = time.perf_counter()
    recorded = read_loops(args)
    models = load_models(args.run_dir)
    if args.weights:
        folder = Path(args.weights)
        models = load_models(vqvae=folder / "vqvae", cldm=folder / "cldm")
    flow, metadata = load_prepared(args.run_dir)
    age = recorded.people["age"].astype(float)
    surveyed = survey_curves(flow, metadata, ("train",), (age.min(), age.max()))
    held = survey_curves(flow, metadata, HELD_OUT)
    sets = codec_sets(args, held.flow[held.people["best"].to_numpy()])
    settings = ReportSettings(
        draws=args.draws,
        kept=args.kept,
        simulated=args.simulated,
        trials=args.trials,
        seed=args.seed,
        device=args.device,
    )
    report = recordings_report(recorded, models, surveyed, sets, settings)
    numbers = report.numbers() | {
        "weights_sha256": models.sha256,
        "codec_curves": {name: len(curves) for name, curves in sets.items()},
        "seconds": round(time.perf_counter() - start),
    }
    numbers["aims"] = [aim._asdict() for aim in recorded_aims(numbers)]
    write_json(Path(__file__).parent / "results" / "recorded.json", numbers)
    for aim in recorded_aims(numbers):
        met = "met" if aim.low <= aim.value <= aim.high else "MISSED"
        print(f"{met:7}{aim.value:.4g} ({aim.low:g} to {aim.high:g})  {aim.title}")
    if args.figure:
        draw_figure(args, recorded, models)


if __name__ == "__main__":
    main()
