"""SPXRAW to signals_L512.npy: this project's reader beside a row-by-row one, in one run, taking turns.

    .venv/bin/python bench/prepare.py [--people 6689] [--rounds 5] [--data_dir FOLDER]

Writes bench/results/prepare.json and prints it. Without --data_dir the files are simulated, as large as cycle G's: as
XPORT, and as SAS7BDAT too where R has the package haven (a minute more). The ratio is the median of the rounds' ratios:
on a machine that others use too, the two of a round share its luck; processor time depends on them least.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyreadstat
from scipy.interpolate import interp1d

from spiro_diffusion.base.files import write_json
from spiro_diffusion.data import prepare
from spiro_diffusion.formats.nhanes import Source
from spiro_diffusion.simulator.survey import survey_files, write_nhanes
from spiro_diffusion.spirometry.clock import CLOCK, WIDTHS

R_SCRIPT = Path(__file__).parent.parent / "tests" / "data" / "make_sas7bdat.R"


def read(path: Path) -> pd.DataFrame:
    """A table in the usual way."""
    return (pyreadstat.read_xport if path.suffix.lower() == ".xpt" else pyreadstat.read_sas7bdat)(
        str(path)
    )[0]


def row_by_row(source: Source, out: Path) -> pd.DataFrame:
    """The plain way: each row by itself through np.fromstring and interp1d, then the same join and files."""
    raw, demo, bmx = read(source.raw), read(source.demo), read(source.bmx)
    signals = np.zeros((len(raw), 512), dtype=np.float32)
    for i, (text, factor) in enumerate(zip(raw["SPXRAW"], raw["SPAFACT"])):
        steps = np.fromstring(text, sep=",")
        volume = np.maximum.accumulate(np.r_[0.0, np.cumsum(steps)]) * 0.001 * factor
        at = interp1d(
            np.arange(len(volume)) * 0.01, volume, bounds_error=False, fill_value=(0.0, volume[-1])
        )
        signals[i] = np.diff(at(CLOCK)) / WIDTHS
    table = raw.drop(columns="SPXRAW").merge(demo, on="SEQN").merge(bmx, on="SEQN", how="left")
    np.save(out / "signals.npy", signals)
    table.to_csv(out / "metadata.csv", index=False)
    return pd.DataFrame(
        signals,
        index=keys(
            raw["SEQN"], raw["SPATTYPE"].map({"Pre": "pre", "Bron": "post"}), raw["SPAMANU"]
        ),
    )


def keys(*columns: pd.Series) -> pd.MultiIndex:
    """What names a blow: SEQN, test and manoeuvre."""
    return pd.MultiIndex.from_arrays([columns[0].astype(int), columns[1], columns[2].astype(int)])


def timed(work: Callable) -> tuple[object, float, float]:
    """What `work` returns, and the seconds and processor seconds that it took."""
    began, used = time.perf_counter(), os.times()
    result, now = work(), os.times()
    return result, time.perf_counter() - began, now.user + now.system - used.user - used.system


def compare(folder: Path, tmp: Path, turns: int) -> dict:
    """Both ways from the files of `folder`, `turns` times, and this project's peak memory in a process of its own."""
    source, rounds = survey_files(folder, tmp / "simulated"), []
    alone = "import resource, sys; from spiro_diffusion.data import prepare; prepare(*sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peak = (
        int(
            subprocess.run(
                [sys.executable, "-c", alone, str(folder), str(tmp / "alone")],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        / 1e6
    )
    for _ in range(turns):
        report, wall, cpu = timed(lambda: prepare(folder, tmp / "ours"))
        signals, plain_wall, plain_cpu = timed(lambda: row_by_row(source, tmp))
        rounds.append(
            {
                "seconds": wall,
                "seconds_row_by_row": plain_wall,
                "ratio": plain_wall / wall,
                "cpu_seconds": cpu,
                "cpu_seconds_row_by_row": plain_cpu,
                "cpu_ratio": plain_cpu / cpu,
            }
        )
    kept = pd.read_csv(tmp / "ours" / "metadata_aligned.csv")
    gap = np.abs(
        np.load(tmp / "ours" / "signals_L512.npy")
        - signals.loc[keys(kept["SEQN"], kept["test"], kept["manoeuvre"])].to_numpy()
    ).max()
    table = pd.DataFrame(rounds)
    return {
        "file_MB": source.raw.stat().st_size / 1e6, "blows": report["blows_read"], "cores": os.cpu_count(), "rounds": turns, **table.median().to_dict(),
        "ratios": sorted(table["ratio"].round(2)), "cpu_ratios": sorted(table["cpu_ratio"].round(2)), "peak_memory_GB": peak, "largest_difference_L_per_s": float(gap),
    }  # fmt: skip


def as_sas7bdat(folder: Path, out: Path) -> bool:
    """The simulated files of `folder` with SPXRAW as SAS7BDAT, by R's haven; False if R has it not."""
    if (
        not shutil.which("Rscript")
        or subprocess.run(["Rscript", "-e", "library(haven)"], capture_output=True).returncode
    ):
        return False
    out.mkdir()
    for name in ("DEMO_G_simulated.xpt", "BMX_G_simulated.xpt"):
        shutil.copy(folder / name, out)
    read(folder / "SPXRAW_G_simulated.xpt").to_csv(out / "raw.csv", index=False)
    subprocess.run(
        ["Rscript", str(R_SCRIPT), str(out / "raw.csv"), str(out / "SPXRAW_G_simulated.sas7bdat")],
        check=True,
    )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=6689)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--data_dir",
        default="",
        help="folder with SPXRAW_G, DEMO_G and BMX_G to read instead of simulated files",
    )
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "prepare.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        folder = Path(args.data_dir or tmp / "nhanes")
        if not args.data_dir:
            write_nhanes(folder, people=args.people, seed=0)
        result = {
            survey_files(folder, tmp / "simulated").raw.suffix[1:].lower(): compare(
                folder, tmp, args.rounds
            )
        }
        if not args.data_dir and as_sas7bdat(folder, tmp / "sas"):
            result["sas7bdat"] = compare(tmp / "sas", tmp, args.rounds)
    write_json(args.out, result)
    print(pd.DataFrame(result).to_string())


if __name__ == "__main__":
    main()
