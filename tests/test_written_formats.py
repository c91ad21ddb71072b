"""Recordings that are written in every format come back as they were, or nothing is written."""

import json
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.formats.nhanes import read_best, read_people, read_raw
from spiro_diffusion.formats.recognise import read_recordings
from spiro_diffusion.formats.recording import SYNTHETIC, Recording, deepest_inspiration
from spiro_diffusion.formats.tables import read_table
from spiro_diffusion.formats.written import WRITERS, write_recordings

NAMES = st.text("aZ7é _-./,;:'\"<&[=", max_size=6).map(str.strip)
ROUND_TRIPS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # where one fails, no minutes of shrinking
    verbosity=Verbosity.quiet,  # nor a page of samples
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PRECISION = {"wf": 6e-5, "wf-flow": 2e-6, "ukb": 6e-4, "loops": 1e-6, "ndd": 1e-6, "fhir": 6e-5}
"""L to which a format gives a volume back."""
SAYS = {"loops": "Synthetic", "nhanes": "Synthetic, not NHANES data"}
"""What a file says of itself, if not `SYNTHETIC`."""


SEXES = ["male", "female"]


@st.composite
def recordings_of(draw) -> Recording:
    """A breath in or none, and a forced expiration with ripples, of a person with any name."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    inhaled = rng.uniform(0.5, 5) * np.linspace(0, 1, draw(st.integers(2, 300)))
    exhaled = rng.uniform(0.5, 7) * (1 - np.exp(-np.arange(rng.integers(20, 900)) / 60))
    exhaled += np.cumsum(rng.normal(0, 1e-4, len(exhaled)))
    volume = exhaled
    if draw(st.booleans()):
        volume = np.r_[-inhaled, exhaled - inhaled[-1]]
    return Recording(
        volume,
        np.arange(len(volume)) / 100,
        person=draw(NAMES.filter(bool)),
        visit=draw(st.sampled_from(["1 pre", "1 post", "2 pre", "2021-05-06", "a b"])),
        trial=draw(st.sampled_from(["1", "2", "17", "007", "last one"])),
        patient={"age": 42.0, "height": 171.5, "weight": 70.5, "sex": draw(st.sampled_from(SEXES))},
        device={"fvc": 3.21, "fev1": 2.34, "pef": 6.5, "effort": "A", "acceptable": True},
    )


def put(recordings: list[Recording], tmp_path: Path, name: str) -> list[Path]:
    """Write recordings over what is there; the paths of those that hold curves."""
    path = tmp_path / f"{name}{WRITERS[name].suffix}"
    paths = write_recordings(recordings, path, name, overwrite=True)
    return paths if name.startswith("wf") else paths[:1]


def read(paths: list[Path]) -> list[Recording]:
    """The recordings of files, without what is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [one for path in paths for one in read_recordings(path)]


@pytest.mark.parametrize("name", PRECISION)
@ROUND_TRIPS
@given(one=recordings_of())
def test_a_recording_comes_back(tmp_path, name, one):
    (back,) = read(put([one], tmp_path, name))
    volume = one.volume
    if name == "ukb":  # from the deepest inspiration on, without the zeros in front
        volume = volume[deepest_inspiration(volume) :]
        rounded = np.rint((volume - volume[0]) * 1000) / 1000
        volume = np.r_[0, rounded[np.flatnonzero(rounded)[0] :]]
    if name == "wf-flow":
        volume = volume - volume[0]
        assert np.allclose(back.volume[::5], volume, rtol=0, atol=PRECISION[name])
    else:
        assert back.volume.shape == volume.shape
        assert np.allclose(back.volume, volume, rtol=0, atol=PRECISION[name])
        assert np.allclose(back.time, np.arange(len(volume)) / 100, rtol=0, atol=1e-9)
    if name == "ukb":  # a number of its own, and the order
        assert (back.person, back.visit) == ("900000001", "0")
        assert one.person in put([one], tmp_path, name)[0].read_text("utf-8").replace('""', '"')
    else:
        assert (back.person, back.visit, back.trial) == (one.person, one.visit, one.trial)
    assert {key: back.patient[key] for key in one.patient} == pytest.approx(dict(one.patient))
    if name != "loops":
        for index in ("fvc", "fev1", "pef"):
            assert back.device[index] == pytest.approx(one.device[index], abs=6e-3)


@settings(ROUND_TRIPS, max_examples=5)
@given(people=st.lists(recordings_of(), min_size=4, max_size=4, unique_by=lambda one: one.person))
def test_nhanes_tables_come_back(tmp_path, people):
    raw, demo, bmx, spx, names = write_recordings(people, tmp_path / "n", "nhanes", overwrite=True)
    blows = read_raw(raw)
    assert not blows.dropped
    assert np.abs(blows.values).max() <= 192
    assert blows.values.min() >= -64
    for one, row in zip(people, blows.recorded, strict=True):
        back = row[: len(one.volume)]
        assert np.isnan(row[len(one.volume) :]).all()
        assert np.isfinite(back).all()
        if np.diff(one.volume).min() > -0.064:  # L in 10 ms, what SPXRAW can say
            assert np.allclose(back, one.volume - one.volume[0], rtol=0, atol=1.2e-3)
    who = read_people(demo, bmx)[["age", "height", "weight"]]
    assert who.to_numpy().tolist() == [[42, 171.5, 70.5]] * 4
    seqn = [900_000_001 + number for number in range(4)]
    best = read_best(spx)
    has_first_test = [not one.visit.endswith("post") for one in people]
    assert best["SEQN"].tolist() == np.array(seqn)[has_first_test].tolist()
    assert (best[["fvc", "fev1", "pef"]] == [3.21, 2.34, 6.5]).all(axis=None)
    second = read_table(spx).reindex(columns=["SPXBFVC", "SPXBFEV1", "SPXBPEF"])
    assert (second[~np.array(has_first_test)] == [3210, 2340, 6500]).all(axis=None)
    numbers = pd.read_csv(names, dtype=str, keep_default_na=False)
    assert numbers["SEQN"].tolist() == [str(number) for number in seqn]
    assert numbers["patient"].tolist() == [one.person for one in people]


def plain(person: str = "P7", trial: str = "1", **more) -> Recording:
    """A forced expiration without a breath in."""
    volume = 3.2 * (1 - np.exp(-np.arange(600) / 60))
    return Recording(volume, np.arange(600) / 100, person, "1 pre", trial, **more)


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_says_that_it_is_synthetic(tmp_path, name):
    path = tmp_path / f"{name}{WRITERS[name].suffix}"
    for file in write_recordings([plain(), plain(trial="2")], path, name):
        data = file.read_bytes()
        text = data.decode("utf-16" if data.startswith(b"\xff\xfe") else "latin-1")
        assert SAYS.get(name, SYNTHETIC) in text


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ([], "there is no recording to write"),
        ([plain(), plain()], "is there twice"),
        ([plain(), plain("")], "does not say whose it is"),
        ([plain(), plain("a\nb")], "has a person that would not be read back"),
        ([plain(), plain("P8", observed=np.arange(600) > 5)], "was not observed in parts"),
    ],
)
def test_a_bad_recording_leaves_no_file(tmp_path, name, odd, said):
    with pytest.raises(DataError, match=said):
        write_recordings(odd, tmp_path / f"{name}{WRITERS[name].suffix}", name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_replaced_unless_it_is_said(tmp_path, name):
    path = tmp_path / f"{name}{WRITERS[name].suffix}"
    paths = write_recordings([plain()], path, name)
    before = [file.read_bytes() for file in paths]
    with pytest.raises(DataError, match="exists"):
        write_recordings([plain(trial="1", device={"fvc": 1.0})], path, name)
    assert [file.read_bytes() for file in paths] == before
    assert not list(tmp_path.rglob("*.part*"))


# What release 4 of FHIR requires of the elements that are written (hl7.org/fhir/R4).
ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
SAMPLES = re.compile(r"(-?\d*\.?\d+|[EUL])( (-?\d*\.?\d+|[EUL]))*")
ELEMENTS = {
    "Patient": {"required": set(), "allowed": {"identifier", "name", "gender"}},
    "Encounter": {
        "required": {"status", "class"},
        "allowed": {"identifier", "status", "class", "subject"},
    },
    "Observation": {
        "required": {"status", "code"},
        "allowed": {
            *("identifier", "status", "category", "code", "subject", "encounter", "component"),
            *("valueQuantity", "valueSampledData", "valueInteger", "valueString"),
        },
    },
}


def check_quantity(quantity: dict) -> None:
    assert set(quantity) == {"value", "unit", "system", "code"}
    assert isinstance(quantity["value"], (int, float))
    assert quantity["system"] == "http://unitsofmeasure.org"
    assert quantity["code"] in {"L", "L/s", "s", "%", "cm", "kg", "a"}


def check_concept(concept: dict) -> None:
    assert set(concept) <= {"coding", "text"}
    assert concept
    for coding in concept.get("coding", []):
        assert re.fullmatch(r"https?://\S+", coding["system"])
        assert re.fullmatch(r"\S+( \S+)*", coding["code"])
        if coding["system"] == "http://loinc.org":
            assert re.fullmatch(r"\d{1,5}-\d", coding["code"])


def check_value(part: dict) -> None:
    values = [name for name in part if name.startswith("value")]
    assert len(values) <= 1
    if "valueQuantity" in part:
        check_quantity(part["valueQuantity"])
    if "valueSampledData" in part:
        sampled = part["valueSampledData"]
        assert {"origin", "period", "dimensions"} <= set(sampled)
        check_quantity(sampled["origin"])
        assert sampled["period"] == 10
        assert sampled["dimensions"] == 1
        assert SAMPLES.fullmatch(sampled["data"])


def texts_in(value) -> list[str]:
    """All texts of a JSON value."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts_in(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts_in(one)]
    return [value] if isinstance(value, str) else []


@pytest.fixture
def bundle(tmp_path) -> dict:
    more = {
        "patient": {"age": 61.5, "sex": "female", "height": 165.0, "ethnicity": 3},
        "device": {"fvc": 3.2, "fev1_fvc": 0.8, "t0": 0.02, "effort": "A", "plateau": True},
    }
    post = Recording(plain().volume, plain().time, "P7", "1 post", "1", **more)
    (path,) = put([plain(**more), plain(trial="2", **more), post, plain("P8")], tmp_path, "fhir")
    return json.loads(path.read_text("utf-8"))


def test_a_bundle_is_as_r4_requires(bundle):
    assert set(bundle) == {"resourceType", "meta", "type", "entry"}
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "collection")
    urls = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len(set(urls)) == len(urls)
    assert all(text.strip() for text in texts_in(bundle))
    resources = [entry["resource"] for entry in bundle["entry"]]
    kinds = Counter(resource["resourceType"] for resource in resources)
    assert (kinds["Patient"], kinds["Encounter"]) == (2, 3)
    assert sum("valueSampledData" in resource for resource in resources) == 4
    for entry in bundle["entry"]:
        resource = entry["resource"]
        known = ELEMENTS[resource["resourceType"]]
        elements = set(resource) - {"resourceType", "id", "meta"}
        assert known["required"] <= elements <= known["allowed"]
        assert ID.fullmatch(resource["id"])
        assert entry["fullUrl"] == f"urn:uuid:{resource['id']}"
        (label,) = resource["meta"]["security"]
        assert label["system"] == "http://terminology.hl7.org/CodeSystem/v3-ActReason"
        assert label["code"] == "HTEST"
        for link in ("subject", "encounter"):
            if link in resource:
                assert resource[link]["reference"] in urls
        if resource["resourceType"] == "Observation":
            assert resource["status"] == "final"
            check_concept(resource["code"])
            check_value(resource)
            for component in resource.get("component", []):
                check_concept(component["code"])
                check_value(component)


def test_a_bundle_is_valid_for_the_published_models(bundle):
    models = pytest.importorskip("fhir.resources.R4B.bundle")
    models.Bundle.model_validate(bundle)
