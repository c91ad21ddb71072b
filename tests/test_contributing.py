"""The example of a device's format in CONTRIBUTING.md, run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.formats import recognise, written
from spiro_diffusion.formats.recording import Recording

ROOT = Path(__file__).parents[1]
SECTION = "## A device's file format"
RATE = 125
LITRES = 4.0


def blowbox_file() -> dict:
    """What the invented device writes: rest, a breath in, and a forced expiration, L/min."""
    time = np.arange(0, 7, 1 / RATE)
    expired = LITRES * (1 - np.exp(-((time / 0.1) ** 2))) * (1 - np.exp(-time / 0.7))
    breath = np.arange(0, 1.5, 1 / RATE)
    inspired = -2.6 * np.sin(np.pi * breath / 1.5)
    flow = np.r_[np.zeros(60), inspired, np.zeros(12), np.gradient(expired, 1 / RATE)]
    effort = {"n": 1, "fs": RATE, "flow_lpm": (60 * flow).round(2).tolist()}
    effort |= {"fvc_l": 4.0, "fev1_l": 3.1}
    patient = {"id": "007", "dob": "1980-02-03", "height_m": 1.75, "sex": "M"}
    tests = [{"date": "2024-05-06", "efforts": [effort, {**effort, "n": 2}]}]
    return {"serial": "B1", "patient": patient, "tests": tests}


def section() -> str:
    """The section on formats."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(SECTION)[1].split("\n## ")[0]


def blocks() -> list[str]:
    """The Python blocks of the section."""
    return re.findall(r"```python\n(.*?)```", section(), re.DOTALL)


def test_the_next_free_number():
    said = re.findall(r"nbs/formats/(\d+)_blowbox", section())
    taken = [int(path.name[:2]) for path in (ROOT / "nbs" / "formats").glob("*.ipynb")]
    assert said == [f"{max(taken) + 1:02}"]


def write_blowbox(recordings: list[Recording], path: Path, overwrite: bool = False) -> Path:
    """The forced expirations of one person, as the device would have written them."""
    made = blowbox_file()
    efforts = []
    for one in recordings:
        flow = np.diff(one.volume, prepend=0) / np.diff(one.time, prepend=-1 / RATE)
        effort = {"n": int(one.trial), "fs": RATE, "flow_lpm": (60 * flow).tolist()}
        efforts.append(effort | {"fvc_l": one.volume[-1], "fev1_l": one.volume[RATE]})
    made["tests"][0]["efforts"] = efforts
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


def test_a_device_s_format(tmp_path, monkeypatch):
    here = tmp_path / "nbs"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(recognise, "FORMATS", list(recognise.FORMATS))
    Path("blowbox.json").write_text(json.dumps(blowbox_file()), encoding="utf-8")
    names: dict = {"__name__": "own_cell"}
    reader, use, _ = blocks()
    exec(reader, names)
    exec(use, names)
    first, second = names["recordings"]
    assert first.name == "blowbox.json, person 007, visit 2024-05-06, trial 1"
    assert second.trial == "2"
    assert first.patient == {"age": 44.25, "height": 175.0, "sex": "M"}
    table = names["measure_recordings"]([first, second])
    assert table["fvc"].to_list() == pytest.approx([LITRES, LITRES], abs=0.01)
    assert (tmp_path / "data" / "processed" / "signals_L512.npy").is_file()
    assert "JSON of a BlowBox" in recognise.known_formats()

    damaged = blowbox_file()
    del damaged["tests"][0]["efforts"][1]["fs"]
    Path("damaged.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(DataError, match="damaged.json is no whole BlowBox file"):
        recognise.read_recordings("damaged.json")
    damaged["tests"][0]["efforts"][0]["flow_lpm"][3] = None
    Path("damaged.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(DataError, match="effort 1 holds something that is no number"):
        recognise.read_recordings("damaged.json")
    with pytest.raises(DataError, match="or JSON of a BlowBox"):
        recognise.read_recordings("none.json")


def test_a_writer_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(recognise, "FORMATS", list(recognise.FORMATS))
    monkeypatch.setattr(written, "WRITERS", dict(written.WRITERS))
    reader, _, line = blocks()
    names: dict = {"__name__": "own_cell", "write_blowbox": write_blowbox}
    exec(reader, names)
    exec(line, names)
    recognise.FORMATS.append(names["BLOWBOX"])
    time = np.arange(0, 6, 1 / RATE)
    curve = Recording(LITRES * (1 - np.exp(-time / 0.7)), time, "007", trial="3")
    path = tmp_path / "own.json"
    assert written.write_recordings([curve], path, "blowbox") == [path]
    (back,) = recognise.read_recordings(path)
    assert (back.person, back.trial, back.format) == ("007", "3", "BlowBox JSON")
    assert np.ptp(back.volume) == pytest.approx(np.ptp(curve.volume), abs=0.01)
    with pytest.raises(DataError, match="blowbox: JSON of a BlowBox"):
        written.write_recordings([curve], path, "pdf")
