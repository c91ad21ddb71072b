"""Recordings of every format: read as people have them, told apart, refused by name."""

import gzip
import json
import random
import warnings

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.apps.console import answer
from spiro_diffusion.apps.reconstruct import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.data import load_prepared, prepare_recordings
from spiro_diffusion.formats.recognise import read_recordings
from spiro_diffusion.formats.recording import Recording, measure_recordings
from spiro_diffusion.formats.ukb import read_ukb
from spiro_diffusion.spirometry.indices import indices

TIME = np.arange(0, 7, 0.01).round(2)
SINCE_START = np.maximum(TIME - 0.08, 0)
VOLUME = 3.4 * (1 - np.exp(-SINCE_START / 0.7)) + 0.8 * (1 - np.exp(-SINCE_START / 3))
VOLUME = (VOLUME * (1 - np.exp(-((SINCE_START / 0.05) ** 2)))).round(4)
FLOW = np.gradient(VOLUME, TIME).round(4)
MS = np.arange(700) * 10
PLAIN = pd.DataFrame({"time": TIME, "volume": VOLUME})
TWO = pd.concat([PLAIN.assign(trial=1), PLAIN.assign(trial=2, volume=0.97 * VOLUME)])
TRUTH = indices(VOLUME, TIME).iloc[0]
WHO = ("--age", 45, "--height", 175, "--sex", "male", "-n", 3)


def csv_of(names: str, *columns: np.ndarray, **how) -> str:
    """A table with columns of these names, separated by |, as text."""
    table = pd.DataFrame(dict(zip(names.split("|"), columns, strict=True)))
    return table.to_csv(index=False, **how)


def ndd_of(volume: np.ndarray, **tags: str) -> str:
    """XML as ndd's software exports it, of one trial and an invented person."""
    data = "".join(f"<{name}>{text}</{name}>" for name, text in tags.items())
    values = " ".join(f"{v:.4f}" for v in volume)
    return (
        '<?xml version="1.0" encoding="utf-16"?><ndd><Patient ID="A 7"><Test TypeOfTest="FVC">'
        f"<TestDate>2021-05-06</TestDate><PatientDataAtTestTime>{data}</PatientDataAtTestTime>"
        "<Trial><Number>1</Number><ChannelVolume><SamplingInterval>0.01</SamplingInterval>"
        f"<SamplingValues>{values}</SamplingValues></ChannelVolume></Trial></Test></Patient></ndd>"
    )


def fhir_of(volume: np.ndarray) -> str:
    """A FHIR bundle of one trial of an invented person: their number, then a curve."""
    sampled = {"origin": {"value": 0, "unit": "mL"}, "period": 10, "dimensions": 1}
    sampled["data"] = " ".join(f"{1000 * v:.1f}" for v in volume)
    person = {"resourceType": "Patient", "id": "A7", "gender": "male"}
    trial = {"resourceType": "Observation", "subject": {"reference": "Patient/A7"}}
    trial |= {"status": "final", "code": {"text": "curve"}, "valueSampledData": sampled}
    fvc = {"coding": [{"system": "http://loinc.org", "code": "19868-9"}]}
    trial["component"] = [{"code": fvc, "valueQuantity": {"value": 3.9, "unit": "L"}}]
    entries = [{"resource": person}, {"resource": trial}]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries})


def ukb_cell(order: str, volume: np.ndarray = VOLUME) -> str:
    """A cell of field 3066: order, number of points, four zeros more than that, mL."""
    ml = np.round(1000 * volume).astype(int).tolist()
    return ",".join(str(word) for word in [order, len(ml), 0, 0, 0, 0, *ml])


WAVE = "[Header]\nType={}\nFreq=100\nUnits={}\n[Data]\n"
GERMAN = {"sep": ";", "decimal": ","}
WRITTEN = {
    "plain": PLAIN.to_csv(index=False),
    "row numbers": PLAIN.to_csv(),
    "semicolons": PLAIN.to_csv(index=False, **GERMAN),
    "tabs": PLAIN.to_csv(index=False, sep="\t"),
    "trailing commas": PLAIN.to_csv(index=False).replace("\n", ",\n"),
    "CRLF": PLAIN.to_csv(index=False, lineterminator="\r\n") + "\r\n\r\n",
    "own export": csv_of("time_s|volume_L", TIME, VOLUME),
    "units in brackets": csv_of("Time (s)|Volume (L)", TIME, VOLUME),
    "ms and mL": csv_of("t [ms]|Volume (mL)", MS, 1000 * VOLUME, **GERMAN),
    "cL": csv_of("time|Vol_cL", TIME, 100 * VOLUME),
    "time of day": csv_of("time|volume", [f"10:00:{t:06.3f}" for t in TIME], VOLUME),
    "flow": csv_of("Time (s)|Flow (L/s)", TIME, FLOW),
    "flow in L/min": csv_of("Time (s)|Flow [L/min]", TIME, 60 * FLOW),
    "loops": csv_of("ID|Visit|Trial|Volume|Flow|Time", 7, 1, 1, VOLUME, FLOW, MS),
    "a title above": "Our export, 2020\n\nTime [s],Volume [L]\n"
    + PLAIN.to_csv(index=False, header=False),
    "comments": "# made today\n" + PLAIN.to_csv(index=False),
    "volume waveform": WAVE.format("VT", "L") + "\n".join(f"{v}" for v in VOLUME),
    "UK Biobank tabs": f"eid\tp3066_i0_a0\n5000011\t{ukb_cell('blow1')}\n",
    "UK Biobank commas": f'eid,p3066_i0_a0,p3066_i0_a1\n5000011,"{ukb_cell("1")}",\n',
    "UK Biobank line": ukb_cell("blow1"),
    "ndd": ndd_of(VOLUME),
    "FHIR": fhir_of(VOLUME),
}


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [("VT", np.round(1000 * VOLUME)), ("FT", np.diff(VOLUME) * 1e5)],
)
def test_an_ats_waveform_in_ml_is_refused_by_its_unit(tmp_path, kind, numbers):
    path = tmp_path / "ml.wf"
    path.write_text(WAVE.format(kind, "mL") + "\n".join(f"{v:.1f}" for v in numbers))
    with pytest.raises(DataError, match="looks like mL"):
        measure_recordings(read_recordings(path))


@pytest.mark.filterwarnings("ignore:.*Time is taken as ms")
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_one_manoeuvre_in_every_format(tmp_path, name, encoding):
    path = tmp_path / "export"  # the name says nothing
    path.write_bytes(WRITTEN[name].encode(encoding))
    (recording,) = read_recordings(path)
    found = measure_recordings([recording]).iloc[0]
    assert found["fvc"] == pytest.approx(TRUTH["fvc"], abs=0.005)
    assert found["fev1"] == pytest.approx(TRUTH["fev1"], abs=0.01)
    assert found["pef"] == pytest.approx(TRUTH["pef"], rel=0.03)


def test_compressed_and_latin_1(tmp_path):
    path = tmp_path / "export.csv.gz"
    path.write_bytes(gzip.compress(WRITTEN["plain"].encode()))
    assert len(read_recordings(path)) == 1
    path.write_bytes(csv_of("time|volume|Größe", TIME, VOLUME, "ü").encode("latin-1"))
    with pytest.warns(UserWarning, match="column is not used: Größe"):
        read_recordings(path)


def test_manoeuvres_of_one_file_are_told_apart(tmp_path):
    path = tmp_path / "two.csv"
    TWO.to_csv(path, index=False)
    assert [one.trial for one in read_recordings(path)] == ["1", "2"]
    TWO.drop(columns="trial").to_csv(path, index=False)  # the time starts again
    assert [one.trial for one in read_recordings(path)] == ["1", "2"]
    assert measure_recordings(read_recordings(path))["fvc"].is_monotonic_decreasing

    asked = answer(main, (path, *WHO))
    assert asked.status == 2
    assert asked.err.count("\n") == 1
    assert "two.csv holds 2 manoeuvres, say which one: --trial '1', --trial '2'" in asked.err
    assert answer(main, (path, *WHO, "--trial", 2)).status == 0
    assert "has no manoeuvre of --trial 3" in answer(main, (path, *WHO, "--trial", 3)).err


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("TRUE", "FALSE"), ("1", ""), ("yes", "no"), ("T", "F"), ("y", "n")]
)
def test_flags_of_observed(tmp_path, yes, no):
    path = tmp_path / "hit.csv"
    first = PLAIN[PLAIN["time"] <= 2]
    hit = first["time"].between(1.0, 1.2)
    observed = np.where(hit, no, yes)
    first.assign(volume=first["volume"] + 1.2 * hit, observed=observed).to_csv(path, index=False)
    (recording,) = read_recordings(path)
    assert (recording.observed == ~hit).all()
    done = answer(main, (path, *WHO))
    assert done.status == 0, done.err
    words = next(line for line in done.out.splitlines() if line.startswith("fev1 ")).split()
    assert float(words[3]) == pytest.approx(TRUTH["fev1"], abs=0.02), "the hit counts for nothing"


def test_flags_that_are_none(tmp_path):
    path = tmp_path / "hit.csv"
    PLAIN.assign(observed=["1", "0", ""] + ["1"] * 697).to_csv(path, index=False)
    refused = answer(main, (path, *WHO))
    assert refused.status == 2
    assert "column 'observed', has an empty cell in row 3" in refused.err


def test_age_height_and_sex_of_the_file(tmp_path):
    path = tmp_path / "session.xml"
    known = {"Height": "1.64", "Gender": "Female", "DateOfBirth": "1971-05-06"}
    path.write_text(ndd_of(VOLUME, **known))
    done = answer(main, (path, "-n", 3))
    assert done.status == 0
    assert done.err == "note: as session.xml says: age 50.0, height 164.0, sex female\n"
    done = answer(main, (path, *WHO))
    assert (done.status, done.err) == (0, "")


def test_uk_biobank_as_the_platform_exports_it(tmp_path):
    path = tmp_path / "blows.tsv"
    rows = [
        ["eid", "p3061_i0_a0", "p3065_i0_a0", "p3066_i0_a0", "p3066_i0_a1", "p3066_i0_a2"],
        ["5000011", "0", "ACCEPT", ukb_cell("1"), ukb_cell("2"), ukb_cell("3", 0.9 * VOLUME)],
        ["5000022", "", "", ukb_cell("1"), ukb_cell("2"), ""],
    ]
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    volume, time = read_ukb(path)
    assert volume.shape == (5, len(time))
    found = indices(volume, time)
    np.testing.assert_allclose(found["fev1"][[0, 1, 3, 4]], TRUTH["fev1"], atol=0.005)
    np.testing.assert_allclose(found["fev1"][2], 0.9 * TRUTH["fev1"], atol=0.005)
    first, *_, last = read_recordings(path)
    assert first.device == {"p3061": "0", "p3065": "ACCEPT"}
    assert last.name == "blows.tsv, person 5000022, visit 0, trial 2"

    table = pd.read_csv(path, sep="\t", dtype=str)
    assert len(read_ukb(table["p3066_i0_a0"])[0]) == 2
    assert len(read_ukb(table["p3066_i0_a2"])[0]) == 1, "a third blow was not needed"
    assert len(read_ukb(table["p3066_i0_a0"].iloc[0])[0]) == 1
    path.write_text(path.read_text()[:-1000])
    with pytest.raises(DataError, match="eid 5000022, column p3066_i0_a1|line 3 has"):
        read_ukb(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "export is empty: recordings are read from"),
        ("Dear colleague,\nplease find attached\n", "no column time and no column volume"),
        ("tiem,volume\n0,0\n0.01,0.1\n", r"its columns are tiem \(time\?\), volume"),
        ("time,Volume (pints)\n0,0\n0.01,0.1\n", "'pints', which is no known unit of volume"),
        ("time,volume\n0,0\n10,0.1\n20,0.3\n", "if it is milliseconds, call it time_ms"),
        ("time,volume\n0,0\n0.01,NA\n0.02,0.3\n", "has no volume in row 2"),
        ("time,volume\n0,0\n0.01,?\n0.02,0.3\n", "'?' in row 2 of column 'volume'"),
        ("time,volume\n0,0\n0.01,#VALUE!\n", "'#VALUE!' in row 2"),
        ("time;L\n0;0\n", "no column volume"),
        ('Time (ms),Volume (mL)\n0,0\n"1,000","1,003.5"\n', r"'1,003.5' in row 2"),
        ("Zeit (ms);Volume (L)\n990;2,5\n1.000;2,6\n", r"'1.000' in row 2"),
        ("time,volume\n0,00,0,00\n0,01,0,01\n", "line 2 has 4 cells"),
        ("time,volume,volume\n0,0,0\n", "has 2 columns 'volume'"),
        ("0.00,0.0\n0.01,0.1\n", "has no header"),
        (f"eid\tp3066_i0_a0\n1\t{ukb_cell('blow1')[:900]}\n", "says 700 points and holds"),
        (ndd_of(VOLUME[:0]), "holds no forced manoeuvre with samples"),
        (ndd_of(VOLUME)[:-300], "is no whole XML file"),
        (fhir_of(VOLUME)[:-300], "is no whole JSON file"),
        (fhir_of(VOLUME[:0]), "has fewer than two samples"),
        (json.dumps({"time": [0, 1], "volume": [0, 1]}), "is JSON of a program that is not known"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><ndd>&a;</ndd>', "document type definition"),
        ("PK\x03\x04 xl/workbook.xml", "an Excel workbook"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, said):
    path = tmp_path / "export"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as refused:
        read_recordings(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_recordings_become_data(tmp_path):
    path = tmp_path / "lab.csv"
    lab = TWO.assign(patient="007", age=45, height=175, sex="M")
    pd.concat([lab, lab.assign(patient="B", sex="F")]).to_csv(path, index=False)
    recordings = read_recordings(path)
    report = prepare_recordings(recordings, tmp_path / "data" / "processed")
    flow, metadata = load_prepared(tmp_path)
    assert flow.shape == (4, 512)
    assert metadata["gender"].tolist() == [1, 1, 2, 2]
    assert metadata.groupby("SEQN")["split"].nunique().max() == 1
    assert report["files"] == {"lab.csv": "table of curves"}
    names = pd.read_csv(tmp_path / "data" / "processed" / "people.csv", dtype={"person": str})
    assert names["person"].tolist() == ["007", "B"]
    assert set(names["SEQN"]) == set(metadata["SEQN"])
    PLAIN.assign(patient="C", age=45).to_csv(path, index=False)
    with pytest.raises(DataError, match="lab.csv, person C has no sex"):
        prepare_recordings(read_recordings(path), tmp_path / "none")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The file cut, or with bytes changed, put in or left out."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 5))):
        place = rng.randrange(len(out))
        match rng.randrange(4):
            case 0:
                del out[place : place + rng.choice((1, 50))]
            case 1:
                out[place] = rng.randrange(256)
            case 2:
                out[place:place] = rng.choice((b",", b'"', b"\n", b"NA", b"<", b"\x00", b";", b"-"))
            case _:
                del out[place + 20 :]
    return bytes(out)


def read_or_refused(path) -> list[Recording]:
    """What is in a file, nothing if it is refused in one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_recordings(path)
        except DataError as refused:
            if "\n" in str(refused):
                raise
            return []


@pytest.mark.parametrize("name", WRITTEN)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    rng = random.Random(name)
    path = tmp_path / "export"
    for _ in range(15):
        path.write_bytes(damaged(WRITTEN[name].encode(), rng))
        for recording in read_or_refused(path):
            seen = slice(None) if recording.observed is None else recording.observed
            assert np.isfinite(recording.time).all()
            assert np.isfinite(recording.volume[seen]).all()
