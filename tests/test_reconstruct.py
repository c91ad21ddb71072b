"""reconstruct() and the command spiro_reconstruct: what is kept, what is drawn, what is refused."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.apps.reconstruct import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import record_beside, sha256_of, shipped_weights
from spiro_diffusion.completion.model import Completion
from spiro_diffusion.completion.reconstruction import reconstruct


def two_compartments(time, litres, time_constants):
    """Volume (T,) L that two compartments have given at `time` (T,) s, from 0.05 s on."""
    since_start = np.maximum(time - 0.05, 0)
    emptied = 1 - np.exp(-since_start[:, None] / np.array(time_constants))
    return emptied @ np.array(litres)


T = np.arange(0, 8, 0.01)
BLOW = two_compartments(T, litres=(3.2, 0.8), time_constants=(0.45, 1.4))
WHO = {"age": 61, "height": 168, "sex": "female"}


@pytest.fixture(scope="module")
def part():
    """The blow stopped after 2 s."""
    return reconstruct(BLOW[:200], T[:200], WHO, draws=30)


def test_command_writes_table_record_and_figure(tmp_path, capsys):
    file = tmp_path / "blow.csv"
    pd.DataFrame({"time": T[:200], "volume": BLOW[:200]}).to_csv(file, index=False)
    out = tmp_path / "recon.parquet"
    figure = tmp_path / "recon.png"
    words = [file, "--draws", 20, "--out", out, "--figure", figure]
    words += ["--age", 61, "--height", 168, "--sex", "female"]
    words = [str(word) for word in words]

    code = "import sys; from spiro_diffusion.apps.reconstruct import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in done.stdout
    assert figure.stat().st_size > 5000
    table = pd.read_parquet(out)
    assert len(table) == 20
    assert {"fvc", "fev6", "fef2575", "meets_observed", "flow"} <= set(table)
    record = json.loads(record_beside(out).read_text())
    assert "not a medical device" in record["notice"]
    assert record["interval_90"]["fvc"]["low"] < record["interval_90"]["fvc"]["high"]

    assert main(words) == 2
    assert "exists" in capsys.readouterr().err


def test_what_was_observed_is_kept(part):
    flow = np.diff(BLOW) / 0.01
    assert np.abs(part.flow[:, :199] - flow[:199]).max() < 1e-3
    for edge in (198, 199):
        step = np.abs(part.flow[:, edge + 1] - part.flow[:, edge])
        assert step.max() < 0.1, "no step where the recorded part ends"
    assert part.table["meets_observed"].all()
    assert (part.table["fvc"] >= BLOW[199] - 1e-6).all()
    low, middle, high = part.interval(0.9).loc["fvc"]
    assert low < middle < high
    assert part.interval(0.5).loc["fvc", "low"] > low


def test_a_whole_blow_is_left_alone():
    whole = reconstruct(BLOW, T, WHO, draws=5)
    assert whole.complete
    assert np.abs(whole.table["fvc"] - BLOW[-1]).max() < 0.01


def test_a_gap_is_filled():
    seen = ~((T > 0.3) & (T < 0.6))
    coughed = np.where(seen, BLOW, np.nan)
    filled = reconstruct(coughed, T, observed=seen, draws=5)
    assert np.abs(filled.table["fvc"] - BLOW[-1]).max() < 0.01
    volume = np.cumsum(filled.flow[0] * 0.01)
    assert np.abs(volume[59:199] - BLOW[60:200]).max() < 0.002, "after the gap"
    assert np.abs(volume[:200] - BLOW[1:201]).max() < 0.1, "within it"


def test_a_long_blow_that_still_trickles_is_whole_and_a_short_one_is_not():
    t = np.arange(0, 9, 0.01)
    volume = two_compartments(t, litres=(3, 2), time_constants=(0.4, 3.5))
    assert 0.03 < volume[-1] - volume[-101] < 0.06, "no plateau by ATS/ERS 2019"
    whole = reconstruct(volume, t, WHO, draws=5)
    assert whole.complete
    assert whole.trusted
    assert np.abs(whole.table["fvc"] - volume[-1]).max() < 0.01
    stopped = reconstruct(volume[:400], t[:400], WHO, draws=30)
    assert not stopped.complete
    assert stopped.table["fvc"].median() > volume[399] + 0.05


def test_what_nobody_blows_is_not_trusted(part):
    stairs = np.minimum(T, 4) + 0.08 * np.sin(2 * np.pi * T)  # 1 L/s for four seconds, in steps
    strange = reconstruct(stairs[:200], T[:200], WHO, draws=30)
    assert not strange.trusted
    assert strange.unlike > 1
    assert any("unlike" in warning for warning in strange.warnings)
    assert part.unlike < strange.unlike


def test_the_seed_decides_the_draws():
    one, two, other = (
        reconstruct(BLOW[:150], T[:150], WHO, seed=seed, draws=10).flow for seed in (3, 3, 4)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_model_may_be_named_or_given(part):
    folder = shipped_weights("completion")
    keywords = {"volume": BLOW[:200], "time": T[:200], "patients": WHO, "draws": 30, "seed": 0}
    keywords |= {"observed": np.ones(200, dtype=bool), "steps": 8}
    by_folder = reconstruct(**keywords, weights=folder)
    by_model = reconstruct(**keywords, model=Completion.from_pretrained(folder))
    for made in (by_folder, by_model):
        assert np.array_equal(made.flow, part.flow)
        assert made.info["weights_sha256"] == sha256_of(folder / "model.safetensors")
    with pytest.raises(DataError):
        reconstruct(**keywords, weights=folder / "none")


@pytest.mark.parametrize(
    ("volume", "time", "word"),
    [
        pytest.param(BLOW[:70], T[:70], "0.75", id="too short"),
        pytest.param(1000 * BLOW, T, "mL", id="millilitres"),
        pytest.param(BLOW, 1000 * T, "ms", id="milliseconds"),
        pytest.param(BLOW, T[::-1], "rise", id="backwards"),
        pytest.param(np.gradient(BLOW, T), T, "flow", id="flow"),
        pytest.param(np.where(T > 3, np.nan, BLOW), T, "NaN", id="NaN"),
        pytest.param(BLOW[:100], T, "length", id="two lengths"),
        pytest.param(BLOW * 0, T, "no air", id="nothing"),
    ],
)
def test_bad_input_is_refused(volume, time, word):
    with pytest.raises(DataError, match=word):
        reconstruct(volume, time)


def test_a_mask_that_leaves_one_sample_is_refused():
    with pytest.raises(DataError, match="0.00 s were observed"):
        reconstruct(BLOW, T, observed=T == 0)
