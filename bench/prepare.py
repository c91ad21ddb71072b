"""SPXRAW to signals_L512.npy: this reader beside a row-by-row one, in one run, in turns.

    python bench/prepare.py [--people 6689] [--rounds 5] [--data_dir FOLDER] [--out FILE]

Writes bench/results/prepare.json and prints it. Without --data_dir the files are simulated, as
large as cycle G's: as XPORT, and as SAS7BDAT too where R has the package haven (a minute more).
The ratio is the median of the rounds' ratios: on a machine that others use too, the two of a round
share its luck; processor time depends on them least.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyreadstat
from scipy.interpolate import interp1d

from spiro_diffusion.base.files import write_json
from spiro_diffusion.data import prepare
from spiro_diffusion.formats.nhanes import Source
from spiro_diffusion.formats.samples import STEP
from spiro_diffusion.simulator.survey import survey_files, write_nhanes
from spiro_diffusion.spirometry.clock import CLOCK, WIDTHS

R_SCRIPT = Path(__file__).parent.parent / "tests" / "data" / "make_sas7bdat.R"
PREPARE_ALONE = """
import resource, sys
from spiro_diffusion.data import prepare
prepare(*sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
GB_PER_KIB = 1024 / 1e9
"""`ru_maxrss` is in KiB on Linux."""


def read(path: Path) -> pd.DataFrame:
    """A table in the usual way."""
    is_xport = path.suffix.lower() == ".xpt"
    reader = pyreadstat.read_xport if is_xport else pyreadstat.read_sas7bdat
    return reader(str(path))[0]


def one_row(text: str, factor: float) -> np.ndarray:
    """Flow (512,) L/s BTPS of one row of SPXRAW, by np.fromstring and interp1d."""
    steps = np.fromstring(text, sep=",")
    volume = np.maximum.accumulate(np.r_[0.0, np.cumsum(steps)]) * 0.001 * factor
    when = np.arange(len(volume)) * STEP
    at = interp1d(when, volume, bounds_error=False, fill_value=(0.0, volume[-1]))
    return np.diff(at(CLOCK)) / WIDTHS


def row_by_row(source: Source, out: Path) -> pd.DataFrame:
    """The plain way: each row by itself, then the join and files of `prepare`; signals by blow."""
    raw = read(source.raw)
    signals = np.zeros((len(raw), 512), dtype=np.float32)
    for i, (text, factor) in enumerate(zip(raw["SPXRAW"], raw["SPAFACT"], strict=True)):
        signals[i] = one_row(text, factor)
    people = read(source.demo).merge(read(source.bmx), on="SEQN", how="left")
    table = raw.drop(columns="SPXRAW").merge(people, on="SEQN")
    np.save(out / "signals.npy", signals)
    table.to_csv(out / "metadata.csv", index=False)
    tests = raw["SPATTYPE"].map({"Pre": "pre", "Bron": "post"})
    return pd.DataFrame(signals, index=names_of(raw["SEQN"], tests, raw["SPAMANU"]))


def names_of(seqn: pd.Series, test: pd.Series, manoeuvre: pd.Series) -> pd.MultiIndex:
    """What names a blow: SEQN, test and manoeuvre."""
    return pd.MultiIndex.from_arrays([seqn.astype(int), test, manoeuvre.astype(int)])


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` returns, and the seconds and processor seconds that it took."""
    began = time.perf_counter()
    before = os.times()
    result = work()
    after = os.times()
    seconds = time.perf_counter() - began
    return result, seconds, after.user + after.system - before.user - before.system


def peak_memory(folder: Path, out: Path) -> float:
    """GB that a process of its own has at most while it prepares the files of `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE_ALONE, str(folder), str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout) * GB_PER_KIB


def largest_gap(prepared: Path, signals: pd.DataFrame) -> float:
    """Largest difference, L/s, of what `prepare` wrote from `signals`, blow by blow."""
    kept = pd.read_csv(prepared / "metadata_aligned.csv")
    plain = signals.loc[names_of(kept["SEQN"], kept["test"], kept["manoeuvre"])].to_numpy()
    return float(np.abs(np.load(prepared / "signals_L512.npy") - plain).max())


def compare(folder: Path, tmp: Path, turns: int) -> dict[str, Any]:
    """Both ways from the files of `folder`, `turns` times, and this project's peak memory."""
    source = survey_files(folder, tmp / "simulated")
    memory = peak_memory(folder, tmp / "alone")
    rounds = []
    for _ in range(turns):
        report, seconds, cpu = timed(lambda: prepare(folder, tmp / "ours"))
        signals, plain_seconds, plain_cpu = timed(lambda: row_by_row(source, tmp))
        rounds.append(
            {
                "seconds": seconds,
                "seconds_row_by_row": plain_seconds,
                "ratio": plain_seconds / seconds,
                "cpu_seconds": cpu,
                "cpu_seconds_row_by_row": plain_cpu,
                "cpu_ratio": plain_cpu / cpu,
            }
        )
    table = pd.DataFrame(rounds)
    return {
        "file_MB": source.raw.stat().st_size / 1e6,
        "blows": report["blows_read"],
        "cores": os.cpu_count(),
        "rounds": turns,
        **table.median().to_dict(),
        "ratios": sorted(table["ratio"].round(2)),
        "cpu_ratios": sorted(table["cpu_ratio"].round(2)),
        "peak_memory_GB": memory,
        "largest_difference_L_per_s": largest_gap(tmp / "ours", signals),
    }


def has_haven() -> bool:
    """Whether R and its package haven are here."""
    if not shutil.which("Rscript"):
        return False
    return subprocess.run(["Rscript", "-e", "library(haven)"], capture_output=True).returncode == 0


def as_sas7bdat(folder: Path, out: Path) -> None:
    """The simulated files of `folder` again in `out`, SPXRAW as SAS7BDAT, by R's haven."""
    out.mkdir()
    for name in ("DEMO_G_simulated.xpt", "BMX_G_simulated.xpt"):
        shutil.copy(folder / name, out)
    table = out / "raw.csv"
    target = out / "SPXRAW_G_simulated.sas7bdat"
    read(folder / "SPXRAW_G_simulated.xpt").to_csv(table, index=False)
    subprocess.run(["Rscript", str(R_SCRIPT), str(table), str(target)], check=True)


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
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        folder = Path(args.data_dir or tmp / "nhanes")
        if not args.data_dir:
            write_nhanes(folder, people=args.people, seed=0)
        kind = survey_files(folder, tmp / "simulated").raw.suffix[1:].lower()
        result = {kind: compare(folder, tmp, args.rounds)}
        if not args.data_dir and has_haven():
            as_sas7bdat(folder, tmp / "sas")
            result["sas7bdat"] = compare(tmp / "sas", tmp, args.rounds)
    write_json(args.out, result)
    print(pd.DataFrame(result).to_string())


if __name__ == "__main__":
    main()
