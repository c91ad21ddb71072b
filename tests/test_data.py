"""NHANES files as a user has them: SAS7BDAT by R's haven, XPORT, other names and folders, and broken ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyreadstat
import pytest

from spiro_diffusion import formats
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.data import load_prepared, prepare
from spiro_diffusion.formats.nhanes import iter_raw, join_blows, read_raw
from spiro_diffusion.formats.samples import BAD_RANGE, BAD_TEXT
from spiro_diffusion.formats.tables import find_table
from spiro_diffusion.latents import describe_blows, load_described

HERE = Path(__file__).parent / "data"


@pytest.fixture
def nhanes(tmp_path) -> Path:
    """A folder as CDC's downloads leave it: a ZIP unpacked one folder down, names in mixed case, no `_simulated`."""
    folder = tmp_path / "raw data ü"
    (folder / "SPXRAW_G").mkdir(parents=True)
    shutil.copy(HERE / "SPXRAW_G_simulated.sas7bdat", folder / "SPXRAW_G" / "spxraw_g.sas7bdat")
    shutil.copy(HERE / "DEMO_G_simulated.xpt", folder / "DEMO_G.XPT")
    shutil.copy(HERE / "BMX_G_simulated.xpt", folder / "bmx_g.xpt")
    return folder


def test_sas7bdat_is_read_as_xport_is(nhanes, tmp_path):
    sas = read_raw(nhanes / "SPXRAW_G" / "spxraw_g.sas7bdat")
    frame, _ = pyreadstat.read_sas7bdat(str(HERE / "SPXRAW_G_simulated.sas7bdat"))
    pyreadstat.write_xport(frame, str(tmp_path / "SPXRAW_G.xpt"), file_format_version=8)
    xport = read_raw(tmp_path / "SPXRAW_G.xpt")
    assert len(sas.table) == len(frame) and not sas.dropped
    assert np.array_equal(sas.values, xport.values) and sas.table.equals(xport.table)
    first = [int(v) for v in frame["SPXRAW"][0].split(",")]
    assert sas.values[: len(first)].tolist() == first


@pytest.mark.parametrize(("rows", "chunk"), [(7, 3), (7, 7), (5, 1000)])
def test_sas7bdat_streams_in_pieces(nhanes, monkeypatch, rows, chunk):
    """Read a few rows at a time, handed on in smaller pieces or not, the last part full or empty."""
    path = find_table(nhanes, "SPXRAW")
    whole = read_raw(path)
    monkeypatch.setattr(formats, "SAS_ROWS", rows)
    pieces = list(iter_raw(path, chunk))
    assert max(len(p.table) for p in pieces) <= min(chunk, len(whole.table)) and (
        chunk > 100 or len(pieces) >= len(whole.table) / chunk
    )
    again = join_blows(pieces)
    assert np.array_equal(again.values, whole.values) and again.table.equals(whole.table)


def test_files_as_cdc_ships_them(nhanes, tmp_path):
    report = prepare(nhanes, tmp_path / "data" / "processed")
    flow, metadata = load_prepared(tmp_path)
    assert report["source"] == "CDC's recorded blows" and not report["simulated"]
    assert len(flow) == len(metadata) == report["blows_kept"] > 40 and set(metadata["test"]) <= {
        "pre",
        "post",
    }
    assert (
        json.loads((tmp_path / "data" / "processed" / "preparation.json").read_text())["blows_read"]
        == report["blows_read"]
    )


def test_no_best_blow_in_a_session_that_spx_does_not_trust(nhanes, tmp_path):
    seqn = sorted(read_raw(find_table(nhanes, "SPXRAW")).table["SEQN"].unique())
    numbers = [f"SPXN{v}" for v in ("FVC", "FEV1", "FEV3", "FEV6", "PEF", "F257", "EV", "FET")]
    grades = {"SPXNQFVC": ["A", "B", "A"], "SPXNQFV1": ["B", "C", ""]}
    spx = pd.DataFrame(
        {"SEQN": np.array(seqn[:3], dtype=float), **dict.fromkeys(numbers, 3000.0), **grades}
    )
    pyreadstat.write_xport(spx, str(nhanes / "SPX_G.xpt"), file_format_version=8)
    prepare(nhanes, tmp_path / "data" / "processed")
    flow, metadata = load_prepared(tmp_path)
    session = metadata.drop_duplicates("SEQN").set_index("SEQN")["session"].reindex(seqn)
    assert session.head(2).tolist() == ["B", "C"] and session.iloc[2:].isna().all(), (
        "the worse of two grades; unknown where one is missing"
    )
    describe_blows(flow, metadata, tmp_path / "data" / "processed")
    blow = load_described(tmp_path, metadata).groupby("SEQN")["blow"]
    assert blow.apply(lambda b: b.isna().all()).tolist() == [s == "C" for s in session]
    assert (blow.apply(lambda b: (b == "best").sum()) >= (session != "C")).all()


def test_faulty_rows_are_counted_not_kept(nhanes, tmp_path):
    raw = find_table(nhanes, "SPXRAW")
    frame, _ = pyreadstat.read_sas7bdat(str(raw))
    raw.unlink()
    frame.loc[0, "SPXRAW"] += ",x"
    frame.loc[1, "SPXRAW"] = "500," + frame.loc[1, "SPXRAW"].split(",", 1)[1]
    frame.loc[2, "SEQN"] = 5.0
    pyreadstat.write_xport(frame, str(nhanes / "SPXRAW_G.xpt"), file_format_version=8)
    report = prepare(nhanes, tmp_path / "out")
    assert report["dropped"] == {BAD_TEXT: 1, BAD_RANGE: 1, "SEQN not in DEMO": 1}
    assert report["blows_kept"] == len(frame) - 3


def break_file(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "web page":
        path.write_bytes(b"\n<html><head><title>404</title></head></html>")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif how == "gone":
        path.unlink()
    elif how == "other":
        path.write_bytes(b"PK\x03\x04" + whole)


@pytest.mark.parametrize("how", ["web page", "empty", "cut", "gone", "other"])
@pytest.mark.parametrize("name", ["SPXRAW_G/spxraw_g.sas7bdat", "DEMO_G.XPT", "bmx_g.xpt"])
def test_broken_files_are_named_and_leave_nothing(nhanes, tmp_path, name, how):
    if how == "gone" and name.startswith("SPXRAW"):
        pytest.skip("without raw curves, blows are simulated")
    break_file(nhanes / name, how)
    out = tmp_path / "out"
    with pytest.raises(DataError) as caught:
        prepare(nhanes, out)
    word = Path(name).stem.upper() if how == "gone" else Path(name).name
    assert word in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists() or not list(out.iterdir())


def test_a_failed_run_keeps_what_was_there(nhanes, tmp_path):
    out = tmp_path / "out"
    prepare(nhanes, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    break_file(nhanes / "bmx_g.xpt", "web page")
    with pytest.raises(DataError):
        prepare(nhanes, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_nobody_left_and_no_seqn(nhanes, tmp_path):
    demo, _ = pyreadstat.read_xport(str(nhanes / "DEMO_G.XPT"))
    pyreadstat.write_xport(
        demo.assign(SEQN=demo["SEQN"] + 1e6), str(nhanes / "DEMO_G.XPT"), file_format_version=8
    )
    with pytest.raises(DataError, match="no blow of .* is left"):
        prepare(nhanes, tmp_path / "out")
    pyreadstat.write_xport(
        demo.rename(columns={"SEQN": "ID"}), str(nhanes / "DEMO_G.XPT"), file_format_version=8
    )
    with pytest.raises(DataError, match="DEMO_G.XPT has no column SEQN"):
        prepare(nhanes, tmp_path / "out")


def test_another_cycle(nhanes, tmp_path):
    demo, _ = pyreadstat.read_xport(str(nhanes / "DEMO_G.XPT"))
    pyreadstat.write_xport(
        demo.assign(SDDSRVYR=6.0), str(nhanes / "DEMO_G.XPT"), file_format_version=8
    )
    with pytest.raises(DataError, match="not cycle G's"):
        prepare(nhanes, tmp_path / "out")


def test_missing_height_and_top_coded_age_are_kept_and_counted(nhanes, tmp_path):
    bmx, _ = pyreadstat.read_xport(str(nhanes / "bmx_g.xpt"))
    demo, _ = pyreadstat.read_xport(str(nhanes / "DEMO_G.XPT"))
    short, old = bmx["SEQN"].iloc[0], demo["SEQN"].iloc[1]
    pyreadstat.write_xport(
        bmx.assign(BMXHT=bmx["BMXHT"].where(bmx["SEQN"] != short)),
        str(nhanes / "bmx_g.xpt"),
        file_format_version=8,
    )
    pyreadstat.write_xport(
        demo.assign(RIDAGEYR=demo["RIDAGEYR"].where(demo["SEQN"] != old, 80.0)),
        str(nhanes / "DEMO_G.XPT"),
        file_format_version=8,
    )
    report = prepare(nhanes, tmp_path / "data" / "processed")
    _, metadata = load_prepared(tmp_path)
    assert (
        report["blows_without_height"]
        == metadata["height"].isna().sum()
        >= (metadata["SEQN"] == short).sum()
        > 0
    )
    assert report["blows_aged_80_or_over"] == (metadata["SEQN"] == old).sum() > 0
    assert isinstance(metadata, pd.DataFrame)
