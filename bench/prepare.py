"""SPXRAW to signals_L512.npy: this project's reader beside a row-by-row one, in one run, taking turns.

    .venv/bin/python bench/prepare.py [--people 6689] [--rounds 5] [--data_dir FOLDER]

Writes bench/results/prepare.json and prints it. Without --data_dir the file is simulated, as large as cycle G's.
The ratio is the median of the rounds' ratios: on a machine that others use too, the two of a round share its luck.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyreadstat
from scipy.interpolate import interp1d

from spiro_diffusion.common import write_json
from spiro_diffusion.data import Source, find_source, prepare
from spiro_diffusion.simulator import write_nhanes
from spiro_diffusion.spirometry import CLOCK, WIDTHS


def read(path: Path) -> pd.DataFrame:
    """A table in the usual way."""
    return (pyreadstat.read_xport if path.suffix.lower() == ".xpt" else pyreadstat.read_sas7bdat)(str(path))[0]


def row_by_row(source: Source, out: Path) -> pd.DataFrame:
    """The plain way: each row by itself through np.fromstring and interp1d, then the same join and files."""
    raw, demo, bmx = read(source.raw), read(source.demo), read(source.bmx)
    signals = np.zeros((len(raw), 512), dtype=np.float32)
    for i, (text, factor) in enumerate(zip(raw["SPXRAW"], raw["SPAFACT"])):
        steps = np.fromstring(text, sep=",")
        volume = np.maximum.accumulate(np.r_[0.0, np.cumsum(steps)]) * 0.001 * factor
        at = interp1d(np.arange(len(volume)) * 0.01, volume, bounds_error=False, fill_value=(0.0, volume[-1]))
        signals[i] = np.diff(at(CLOCK)) / WIDTHS
    table = raw.drop(columns="SPXRAW").merge(demo, on="SEQN").merge(bmx, on="SEQN", how="left")
    np.save(out / "signals.npy", signals)
    table.to_csv(out / "metadata.csv", index=False)
    return pd.DataFrame(signals, index=keys(raw["SEQN"], raw["SPATTYPE"].map({"Pre": "pre", "Bron": "post"}), raw["SPAMANU"]))


def keys(*columns: pd.Series) -> pd.MultiIndex:
    """What names a blow: SEQN, test and manoeuvre."""
    return pd.MultiIndex.from_arrays([columns[0].astype(int), columns[1], columns[2].astype(int)])


def timed(work: Callable) -> tuple[object, float, float]:
    """What `work` returns, and the seconds and processor seconds that it took."""
    began, used = time.perf_counter(), os.times()
    result, now = work(), os.times()
    return result, time.perf_counter() - began, now.user + now.system - used.user - used.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=6689)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data_dir", default="", help="folder with SPXRAW_G, DEMO_G and BMX_G to read instead of simulated files")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "prepare.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    rounds, peak = [], 0.0
    with tempfile.TemporaryDirectory() as tmp:
        folder, ours = Path(args.data_dir or Path(tmp) / "nhanes"), Path(tmp) / "ours"
        if not args.data_dir:
            write_nhanes(folder, people=args.people, seed=0)
        source = find_source(folder, Path(tmp) / "simulated")
        for _ in range(args.rounds):
            report, wall, cpu = timed(lambda: prepare(folder, ours))
            peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            signals, plain_wall, plain_cpu = timed(lambda: row_by_row(source, Path(tmp)))
            rounds.append({"seconds": wall, "seconds_row_by_row": plain_wall, "ratio": plain_wall / wall, "cpu_seconds": cpu, "cpu_seconds_row_by_row": plain_cpu, "cpu_ratio": plain_cpu / cpu})
        kept = pd.read_csv(ours / "metadata_aligned.csv")
        gap = np.abs(np.load(ours / "signals_L512.npy") - signals.loc[keys(kept["SEQN"], kept["test"], kept["manoeuvre"])].to_numpy()).max()
        size = source.raw.stat().st_size / 1e6
    middle = pd.DataFrame(rounds).median().to_dict()
    result = {"file": source.raw.suffix, "file_MB": size, "blows": report["blows_read"], "cores": os.cpu_count(), "rounds": args.rounds, **middle, "peak_memory_GB": peak, "largest_difference_L_per_s": float(gap)}
    write_json(args.out, result)
    print(pd.Series(result).to_string())


if __name__ == "__main__":
    main()
