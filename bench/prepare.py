"""SPXRAW to signals_L512.npy: this project's reader beside a row-by-row one, in one run, alternating.

    .venv/bin/python bench/prepare.py [--people 6689] [--rounds 3]

Writes bench/results/prepare.json and prints a table. The file is simulated, as large as cycle G's.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyreadstat
from scipy.interpolate import interp1d

from spiro_diffusion.common import write_json
from spiro_diffusion.data import prepare
from spiro_diffusion.simulator import write_nhanes
from spiro_diffusion.spirometry import CLOCK, WIDTHS


def row_by_row(folder: Path, out: Path) -> pd.DataFrame:
    """The plain way: each row by itself through np.fromstring and interp1d, then the same join and files."""
    raw, _ = pyreadstat.read_xport(str(folder / "SPXRAW_G_simulated.xpt"))
    demo, _ = pyreadstat.read_xport(str(folder / "DEMO_G_simulated.xpt"))
    bmx, _ = pyreadstat.read_xport(str(folder / "BMX_G_simulated.xpt"))
    signals = np.zeros((len(raw), 512), dtype=np.float32)
    for i, (text, factor) in enumerate(zip(raw["SPXRAW"], raw["SPAFACT"])):
        steps = np.fromstring(text, sep=",")
        volume = np.maximum.accumulate(np.r_[0.0, np.cumsum(steps)]) * 0.001 * factor
        at = interp1d(np.arange(len(volume)) * 0.01, volume, bounds_error=False, fill_value=(0.0, volume[-1]))
        signals[i] = np.diff(at(CLOCK)) / WIDTHS
    table = raw.drop(columns="SPXRAW").merge(demo, on="SEQN").merge(bmx, on="SEQN", how="left")
    np.save(out / "signals.npy", signals)
    table.to_csv(out / "metadata.csv", index=False)
    return pd.DataFrame(signals, index=_keys(raw["SEQN"], raw["SPATTYPE"].map({"Pre": "pre", "Bron": "post"}), raw["SPAMANU"]))


def _keys(*columns: pd.Series) -> pd.MultiIndex:
    """What names a blow: SEQN, test and manoeuvre."""
    return pd.MultiIndex.from_arrays([columns[0].astype(int), columns[1], columns[2].astype(int)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=6689)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "prepare.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    times: dict[str, list[float]] = {"this project": [], "row by row": []}
    cpu: dict[str, list[float]] = {"this project": [], "row by row": []}
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "nhanes"
        write_nhanes(folder, people=args.people, seed=0)
        size = (folder / "SPXRAW_G_simulated.xpt").stat().st_size
        report, peak = {}, 0.0
        for _ in range(args.rounds):
            for name in times:
                began, used = time.perf_counter(), os.times()
                if name == "this project":
                    report = prepare(folder, Path(tmp) / "ours")
                    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
                else:
                    signals = row_by_row(folder, Path(tmp))
                times[name].append(time.perf_counter() - began)
                now = os.times()
                cpu[name].append(now.user + now.system - used.user - used.system)
        ours, kept = np.load(Path(tmp) / "ours" / "signals_L512.npy"), pd.read_csv(Path(tmp) / "ours" / "metadata_aligned.csv")
        gap = float(np.abs(ours - signals.loc[_keys(kept["SEQN"], kept["test"], kept["manoeuvre"])].to_numpy()).max())
    middle = {k: statistics.median(v) for k, v in times.items()}
    result = {
        "blows": report["blows_read"], "file_MB": size / 1e6, "seconds": middle, "ratio": middle["row by row"] / middle["this project"],
        "cpu_seconds": {k: statistics.median(v) for k, v in cpu.items()}, "peak_memory_GB": peak, "largest_difference_L_per_s": gap,
    }  # fmt: skip
    write_json(args.out, result)
    print(pd.Series(result).to_string())


if __name__ == "__main__":
    main()
