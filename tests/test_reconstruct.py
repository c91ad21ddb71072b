"""The command spiro_reconstruct and reconstruct(): through a process, and on bad input."""

import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.completion.reconstruction import reconstruct

T = np.arange(0, 8, 0.01)
BLOW = 3.2 * (1 - np.exp(-np.maximum(T - 0.05, 0) / 0.45)) + 0.8 * (
    1 - np.exp(-np.maximum(T - 0.05, 0) / 1.4)
)
WHO = {"age": 61, "height": 168, "sex": "female"}


def command(*words):
    code = (
        "import sys; from spiro_diffusion.reconstruction import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True
    )


def test_command_writes_table_record_and_figure(tmp_path):
    file = tmp_path / "blow.csv"
    pd.DataFrame({"time": T[:200], "volume": BLOW[:200]}).to_csv(file, index=False)
    out, figure = tmp_path / "recon.parquet", tmp_path / "recon.png"
    words = (
        file,
        "--age",
        61,
        "--height",
        168,
        "--sex",
        "female",
        "--draws",
        50,
        "--out",
        out,
        "--figure",
        figure,
    )
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in done.stdout and figure.stat().st_size > 5000
    table, record = pd.read_parquet(out), json.loads(out.with_suffix(".json").read_text())
    assert len(table) == 50 and {"fvc", "fev6", "fef2575", "meets_observed", "flow"} <= set(table)
    assert (
        "not a medical device" in record["notice"]
        and record["interval_90"]["fvc"]["low"] < record["interval_90"]["fvc"]["high"]
    )
    again = command(*words)
    assert again.returncode == 2 and "exists" in again.stderr and "Traceback" not in again.stderr


def test_what_was_observed_is_kept():
    part = reconstruct(BLOW[:200], T[:200], WHO)
    flow = np.diff(BLOW) / 0.01
    assert np.abs(part.flow[:, :199] - flow[:199]).max() < 1e-3
    assert (
        np.abs(part.flow[:, 199] - part.flow[:, 198]).max() < 0.1
        and np.abs(part.flow[:, 200] - part.flow[:, 199]).max() < 0.1
    )
    assert part.table["meets_observed"].all() and (part.table["fvc"] >= BLOW[199] - 1e-6).all()
    low, middle, high = part.interval(0.9).loc["fvc"]
    assert low < middle < high and part.interval(0.5).loc["fvc", "low"] > low


def test_a_whole_blow_is_left_alone_and_a_gap_is_filled():
    whole = reconstruct(BLOW, T, WHO)
    assert whole.complete and np.abs(whole.table["fvc"] - BLOW[-1]).max() < 0.01
    seen = ~((T > 0.3) & (T < 0.6))
    coughed = np.where(seen, BLOW, np.nan)
    filled = reconstruct(coughed, T, observed=seen)
    assert np.abs(filled.table["fvc"] - BLOW[-1]).max() < 0.01
    volume = np.cumsum(filled.flow[0] * 0.01)
    assert (
        np.abs(volume[59:199] - BLOW[60:200]).max() < 0.002
        and np.abs(volume[:200] - BLOW[1:201]).max() < 0.1
    )


def test_a_long_blow_that_still_trickles_is_whole_and_a_short_one_is_not():
    t = np.arange(0, 9, 0.01)
    volume = 3 * (1 - np.exp(-np.maximum(t - 0.05, 0) / 0.4)) + 2 * (
        1 - np.exp(-np.maximum(t - 0.05, 0) / 3.5)
    )
    late = volume[-1] - volume[-101]
    assert 0.03 < late < 0.06, "no plateau by ATS/ERS 2019"
    whole = reconstruct(volume, t, WHO)
    assert whole.complete and whole.trusted and np.abs(whole.table["fvc"] - volume[-1]).max() < 0.01
    part = reconstruct(volume[:400], t[:400], WHO)
    assert not part.complete and part.table["fvc"].median() > volume[399] + 0.05


def test_what_nobody_blows_is_not_trusted():
    stairs = np.minimum(T, 4) + 0.08 * np.sin(2 * np.pi * T)  # 1 L/s for four seconds, in steps
    made = reconstruct(stairs[:200], T[:200], WHO)
    assert not made.trusted and made.unlike > 1 and any("unlike" in w for w in made.warnings)
    usual = reconstruct(BLOW[:200], T[:200], WHO)
    assert usual.unlike < made.unlike


def test_seed_and_time():
    one, two = (reconstruct(BLOW[:150], T[:150], WHO, seed=3) for _ in range(2))
    assert np.array_equal(one.flow, two.flow)
    start = time.perf_counter()
    reconstruct(BLOW[:150], T[:150], WHO, draws=100)
    assert time.perf_counter() - start < 10  # 0.6 s on two free cores


@pytest.mark.parametrize(
    "volume, time_, word",
    [
        (BLOW[:70], T[:70], "0.75"), (1000 * BLOW, T, "mL"), (BLOW, T[::-1], "rise"), (np.gradient(BLOW, T), T, "flow"),
        (np.where(T > 3, np.nan, BLOW), T, "NaN"), (BLOW, 1000 * T, "ms"), (BLOW[:100], T, "length"), (BLOW * 0, T, "no air"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(volume, time_, word):
    with pytest.raises(DataError, match=word):
        reconstruct(volume, time_)
