"""NHANES files as a user has them: by R's haven, as XPORT, other names and folders, and broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyreadstat
import pytest

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.data import load_prepared, obtain_files, prepare, prepare_files
from spiro_diffusion.formats import tables
from spiro_diffusion.formats.nhanes import RawBlows, iter_raw, join_blows, read_raw
from spiro_diffusion.formats.samples import BAD_RANGE, BAD_TEXT
from spiro_diffusion.formats.tables import find_table
from spiro_diffusion.latents import describe_blows, load_described

HERE = Path(__file__).parent / "data"
SAS = HERE / "SPXRAW_G_simulated.sas7bdat"


@pytest.fixture
def nhanes(tmp_path: Path) -> Path:
    """A folder as CDC's downloads leave it: a ZIP unpacked one folder down, names in mixed case.

    Nothing says that these files are simulated.
    """
    folder = tmp_path / "raw data ü"
    (folder / "SPXRAW_G").mkdir(parents=True)
    shutil.copy(SAS, folder / "SPXRAW_G" / "spxraw_g.sas7bdat")
    shutil.copy(HERE / "DEMO_G_simulated.xpt", folder / "DEMO_G.XPT")
    shutil.copy(HERE / "BMX_G_simulated.xpt", folder / "bmx_g.xpt")
    return folder


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """The raw table as pyreadstat reads it."""
    return pyreadstat.read_sas7bdat(str(SAS))[0]


def read_xport(path: Path) -> pd.DataFrame:
    return pyreadstat.read_xport(str(path))[0]


def write_xport(table: pd.DataFrame, path: Path) -> None:
    pyreadstat.write_xport(table, str(path), file_format_version=8)


def raw_file(folder: Path) -> Path:
    """The raw curve file of a folder."""
    path = find_table(folder, "SPXRAW")
    assert path is not None
    return path


def assert_same(a: RawBlows, b: RawBlows) -> None:
    assert np.array_equal(a.values, b.values)
    pd.testing.assert_frame_equal(a.table, b.table)


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


# ---- reading


def test_sas7bdat_is_read_as_xport_is(frame: pd.DataFrame, tmp_path: Path) -> None:
    sas = read_raw(SAS)
    write_xport(frame, tmp_path / "SPXRAW_G.xpt")
    assert_same(sas, read_raw(tmp_path / "SPXRAW_G.xpt"))
    assert len(sas.table) == len(frame)
    assert not sas.dropped
    first = [int(v) for v in frame["SPXRAW"][0].split(",")]
    assert sas.values[: len(first)].tolist() == first


@pytest.mark.parametrize(("rows", "chunk"), [(7, 3), (7, 7), (5, 1000)])
def test_sas7bdat_streams_in_pieces(monkeypatch: pytest.MonkeyPatch, rows: int, chunk: int) -> None:
    """Read a few rows at a time, handed on in smaller pieces or not, the last full or empty."""
    whole = read_raw(SAS)
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", rows)
    pieces = list(iter_raw(SAS, chunk))
    assert max(len(p.table) for p in pieces) <= min(chunk, len(whole.table))
    assert len(pieces) >= len(whole.table) / chunk
    assert_same(join_blows(pieces), whole)


# ---- preparing


def test_files_as_cdc_ships_them(nhanes: Path, tmp_path: Path) -> None:
    processed = tmp_path / "data" / "processed"
    report = prepare(nhanes, processed)
    flow, metadata = load_prepared(tmp_path)
    assert report["source"] == "CDC's recorded blows"
    assert not report["simulated"]
    assert len(flow) == len(metadata) == report["blows_kept"] > 40
    assert set(metadata["test"]) == {"pre", "post"}
    assert json.loads((processed / "preparation.json").read_text()) == report


def test_files_are_obtained_first_and_only_read_then(
    nhanes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = obtain_files(nhanes, tmp_path / "simulated")
    monkeypatch.setattr("spiro_diffusion.data.plan_survey", None)  # it is not called now
    prepare_files(sources, tmp_path / "in two steps")
    prepare(sources, tmp_path / "ready files")
    monkeypatch.undo()
    prepare(nhanes, tmp_path / "at once")
    at_once = files_in(tmp_path / "at once")
    assert len(at_once) == 4
    assert files_in(tmp_path / "in two steps") == at_once
    assert files_in(tmp_path / "ready files") == at_once
    assert not (tmp_path / "simulated").exists()


def test_missing_raw_curves_are_simulated_and_said(
    nhanes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw_file(nhanes).unlink()
    report = prepare(nhanes, tmp_path / "data" / "processed", n_people=3)
    assert report["source"] == "simulated blows for real people"
    assert report["simulated"]
    assert report["people"] == 3
    assert f"simulating blows of the 3 people of {nhanes}" in capsys.readouterr().err
    assert Path(report["files"]["SPXRAW_G"]).parent == tmp_path / "data" / "simulated"


def test_no_best_blow_in_a_session_that_spx_does_not_trust(nhanes: Path, tmp_path: Path) -> None:
    seqn = sorted(read_raw(raw_file(nhanes)).table["SEQN"].unique())
    numbers = [f"SPXN{v}" for v in ("FVC", "FEV1", "FEV3", "FEV6", "PEF", "F257", "EV", "FET")]
    spx = pd.DataFrame({"SEQN": np.array(seqn[:3], dtype=float), **dict.fromkeys(numbers, 3000.0)})
    write_xport(spx.assign(SPXNQFVC=["A", "B", "A"], SPXNQFV1=["B", "C", ""]), nhanes / "SPX_G.xpt")
    prepare(nhanes, tmp_path / "data" / "processed")
    flow, metadata = load_prepared(tmp_path)
    session = metadata.drop_duplicates("SEQN").set_index("SEQN")["session"].reindex(seqn)
    assert session.head(2).tolist() == ["B", "C"], "the worse of two grades"
    assert session.iloc[2:].isna().all(), "unknown where one is missing"
    describe_blows(flow, metadata, tmp_path / "data" / "processed")
    blow = load_described(tmp_path, metadata).groupby("SEQN")["blow"]
    assert blow.apply(lambda b: b.isna().all()).tolist() == [s == "C" for s in session]
    assert (blow.apply(lambda b: (b == "best").sum()) >= (session != "C")).all()


def test_faulty_rows_are_counted_not_kept(
    nhanes: Path, frame: pd.DataFrame, tmp_path: Path
) -> None:
    faulty = frame.copy()
    faulty.loc[0, "SPXRAW"] += ",x"
    faulty.loc[1, "SPXRAW"] = "500," + faulty.loc[1, "SPXRAW"].split(",", 1)[1]
    faulty.loc[2, "SEQN"] = 5.0
    raw_file(nhanes).unlink()
    write_xport(faulty, nhanes / "SPXRAW_G.xpt")
    report = prepare(nhanes, tmp_path / "out")
    assert report["dropped"] == {BAD_TEXT: 1, BAD_RANGE: 1, "SEQN not in DEMO": 1}
    assert report["blows_kept"] == len(frame) - 3


def test_missing_height_and_top_coded_age_are_kept_and_counted(
    nhanes: Path, tmp_path: Path
) -> None:
    bmx = read_xport(nhanes / "bmx_g.xpt")
    demo = read_xport(nhanes / "DEMO_G.XPT")
    short = bmx["SEQN"].iloc[0]
    old = demo["SEQN"].iloc[1]
    bmx["BMXHT"] = bmx["BMXHT"].where(bmx["SEQN"] != short)
    demo["RIDAGEYR"] = demo["RIDAGEYR"].where(demo["SEQN"] != old, 80.0)
    write_xport(bmx, nhanes / "bmx_g.xpt")
    write_xport(demo, nhanes / "DEMO_G.XPT")
    report = prepare(nhanes, tmp_path / "data" / "processed")
    _, metadata = load_prepared(tmp_path)
    assert report["blows_without_height"] == metadata["height"].isna().sum()
    assert metadata.loc[metadata["SEQN"] == short, "height"].isna().all()
    assert (metadata["SEQN"] == short).any()
    assert report["blows_aged_80_or_over"] == (metadata["SEQN"] == old).sum() > 0


# ---- files that cannot be used


def break_file(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
        return
    broken = {
        "web page": b"\n<html><head><title>404</title></head></html>",
        "empty": b"",
        "cut": whole[: len(whole) * 2 // 3],
        "other": b"PK\x03\x04" + whole,
    }
    path.write_bytes(broken[how])


FILES = ("SPXRAW_G/spxraw_g.sas7bdat", "DEMO_G.XPT", "bmx_g.xpt")
BROKEN = [(name, how) for name in FILES for how in ("web page", "empty", "cut", "other")]
GONE = [(name, "gone") for name in FILES[1:]]  # raw curves that are gone are simulated: see above


@pytest.mark.parametrize(("name", "how"), BROKEN + GONE)
def test_broken_files_are_named_and_leave_nothing(
    nhanes: Path, tmp_path: Path, name: str, how: str
) -> None:
    break_file(nhanes / name, how)
    with pytest.raises(DataError) as caught:
        prepare(nhanes, tmp_path / "out")
    word = Path(name).stem.upper() if how == "gone" else Path(name).name
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path / "out") == {}


def test_a_failed_run_keeps_what_was_there(nhanes: Path, tmp_path: Path) -> None:
    prepare(nhanes, tmp_path / "out")
    before = files_in(tmp_path / "out")
    break_file(nhanes / "bmx_g.xpt", "web page")
    with pytest.raises(DataError, match="bmx_g.xpt"):
        prepare(nhanes, tmp_path / "out")
    assert files_in(tmp_path / "out") == before
    assert len(before) == 4


def test_nobody_left(nhanes: Path, tmp_path: Path) -> None:
    for name in ("DEMO_G.XPT", "bmx_g.xpt"):
        table = read_xport(nhanes / name)
        write_xport(table.assign(SEQN=table["SEQN"] + 1e6), nhanes / name)
    with pytest.raises(DataError, match="no blow of .* is left"):
        prepare(nhanes, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


def test_no_seqn(nhanes: Path, tmp_path: Path) -> None:
    demo = read_xport(nhanes / "DEMO_G.XPT")
    write_xport(demo.rename(columns={"SEQN": "ID"}), nhanes / "DEMO_G.XPT")
    with pytest.raises(DataError, match="DEMO_G.XPT has no column SEQN"):
        prepare(nhanes, tmp_path / "out")


def test_another_cycle(nhanes: Path, tmp_path: Path) -> None:
    demo = read_xport(nhanes / "DEMO_G.XPT")
    write_xport(demo.assign(SDDSRVYR=6.0), nhanes / "DEMO_G.XPT")
    with pytest.raises(DataError, match="not cycle G's"):
        prepare(nhanes, tmp_path / "out")
