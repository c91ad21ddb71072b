"""The example of a device's format in CONTRIBUTING.md, run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.formats import recognise

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


def blocks() -> list[str]:
    """The Python blocks of the section."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(SECTION)[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_a_device_s_format(tmp_path, monkeypatch):
    here = tmp_path / "nbs"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(recognise, "FORMATS", list(recognise.FORMATS))
    Path("blowbox.json").write_text(json.dumps(blowbox_file()), encoding="utf-8")
    names: dict = {"__name__": "own_cell"}
    reader, use = blocks()
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
