"""Patients and targets as people write them: read, refused in one sentence, or named in a note."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.apps.console import Answer, answer
from spiro_diffusion.apps.generate import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import read_json
from spiro_diffusion.completion.reconstruction import reconstruct
from spiro_diffusion.generation.cohort import Cohort, read_cohort
from spiro_diffusion.generation.drawing import Models, load_models
from spiro_diffusion.inference import generate
from spiro_diffusion.learning.patients import check_patients
from spiro_diffusion.spirometry.reference import predicted, zscores

MAN = {"age": 45, "height": 175, "sex": "male"}
OPTIONS = ("--age", 45, "--height", 175, "--sex", "male")
QUICK = ("--redraws", 0, "--steps", 2)


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models()


def answer_to(folder: Path, text: str | bytes, *options: object) -> Answer:
    """What the command answers for a file of patients in `folder`."""
    path = folder / "people.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return answer(main, ("--patients", path, *QUICK, *options))


def drawn(models: Models, patients: dict | pd.DataFrame, **options) -> Cohort:
    return generate(patients, models=models, device="cpu", redraws=0, **options)


# Sex: one mapping everywhere.

MALE = ("male", "Male", "M", "m", "M ", "m.", "boy", "Homme", "männlich", "男", 1, 1.0, "1", "1.0")
FEMALE = ("female", "F", "f.", "Girl", "femme", "weiblich", "女", 2, 2.0, "2")
NO_SEX = ("X", 0, 3, 9, "0", "unknown", "malefemale")


@pytest.mark.parametrize("column", ["sex", "gender"])
def test_sex_means_the_same_to_every_function(column: str) -> None:
    base = {"age": [45.0], "height": [175.0], "fev1": [3.0]}
    people = MAN.copy()
    del people["sex"]
    for ways, code, z in ((MALE, 1, -1.3258), (FEMALE, 2, -0.5762)):
        for way in ways:
            given = pd.DataFrame(base | {column: [way]})
            assert zscores(given)["fev1_z"].iloc[0] == pytest.approx(z, abs=2e-3), way
            assert check_patients(people | {column: way})["sex"].tolist() == [code]
    for missing in (None, np.nan, ""):
        given = pd.DataFrame(base | {column: [missing]})
        assert zscores(given).isna().all(axis=None)
        assert predicted(given).isna().all(axis=None)
    for wrong in NO_SEX:
        given = pd.DataFrame(base | {column: [wrong]})
        for function in (zscores, predicted, check_patients):
            with pytest.raises(DataError, match="neither"):
                function(given)


# Names are text.

NAMES = {
    "zeros": ["007", "012"],
    "exponents": ["12E3", "5E1"],
    "sites": ["1.10", "1.1", "1.0", "1"],
    "initials": ["NA", "nan", "None", "KL"],
    "signs": ["-3", "+3", "1_000", "0x1F"],
    "words": ["患者 7", "Zoë", "🫁", "O'Brien, J.", 'the "first"'],
    "case": ["ann", "Ann"],
    "long": ["9" * 5000, "x" * 3000],
}


def table_of(names: Sequence[str]) -> str:
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    return "patient,age,height,sex\n" + "".join(f"{name},45,175,male\n" for name in quoted)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_names_stay_what_they_are(tmp_path: Path, names: list[str]) -> None:
    for out in ("c.parquet", "d.csv"):
        made = answer_to(tmp_path, table_of(names), "--out", tmp_path / out)
        assert made.status == 0, made.err
        assert made.err == ""
    stored = read_cohort(tmp_path / "c.parquet").table["patient"]
    table = pd.read_csv(tmp_path / "d_table.csv", dtype=str, keep_default_na=False)["patient"]
    assert list(stored) == list(table) == names


def test_names_stay_what_they_are_in_partitions(tmp_path: Path) -> None:
    names = ["7", "007", "NA", "8"]
    made = answer_to(tmp_path, table_of(names), "--out", tmp_path / "parts", "--partition", 1)
    assert made.status == 0, made.err
    assert list(read_cohort(tmp_path / "parts").table["patient"]) == names


def test_a_curve_depends_on_the_name_and_not_on_who_else_is_there(tmp_path: Path) -> None:
    curves = []
    for names in (["007", "012"], ["007", "A12"], ["007"], ["1", "007"]):
        made = answer_to(tmp_path, table_of(names), "--out", tmp_path / "c.parquet", "--overwrite")
        assert made.status == 0
        cohort = read_cohort(tmp_path / "c.parquet")
        curves.append(cohort.flow[names.index("007")])
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], atol=1e-4)


def test_whole_numbers_keep_the_curves_that_they_had(models: Models) -> None:
    flows = [drawn(models, MAN | {"patient": name}).flow for name in (7, 7.0, "7", " 7 ")]
    for flow in flows[1:]:
        np.testing.assert_array_equal(flow, flows[0])
    assert abs(drawn(models, MAN | {"patient": "07"}).flow - flows[0]).max() > 0.1


def test_somebody_without_a_name_is_refused(tmp_path: Path) -> None:
    for nobody in (None, np.nan, pd.NA, "", "  "):
        with pytest.raises(DataError, match="row 2 has no name"):
            check_patients(MAN | {"patient": ["ann", nobody], "age": [45, 46]})
    integers = pd.DataFrame({"patient": pd.array([1, None], dtype="Int64"), "age": [45, 46]})
    with pytest.raises(DataError, match="row 2 has no name"):
        check_patients(integers.assign(height=175, sex=1))
    said = answer_to(tmp_path, table_of(["ann", "ann "]))
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "ann is named twice" in said.err
    said = answer_to(tmp_path, table_of(["a\nb", "a\nb"]))
    assert (said.status, said.err.count("\n")) == (2, 1)


# Tables of other programs.

READ = {
    "units in headers": "Age (years),Height (cm),Sex\n45,175,M\n",
    "units behind underscores": "age_years,height_cm,sex,weight_kg\n45,175,M,80\n",
    "inches and pounds": "Age,Height [in],Sex (M/F),weight_lb\n45,69,M,176\n",
    "months": "age (months),height,sex\n540,175,M\n",
    "gender": "AGE,HEIGHT,Gender\n45,175,1\n",
    "semicolons": "age;height;sex\n45;175,5;male\n",
    "trailing commas": "age,height,sex,\n45,175,male,\n",
    "byte order mark": "\ufeffage,height,sex\n45,175,male\n",
    "tabs in UTF-16": "age\theight\tsex\n45\t175\tmale\n".encode("utf-16"),
    "blanks": " age , height , sex \n 45 , 175 , male \n",
    "empty rows": "age,height,sex\n45,175,male\n,,\n\n",
    "missing as R, SAS and pandas write it": (
        "age,height,sex,weight,ethnicity,fev1_z,effort\n45,175,male,NA,.,NaN,\n45,175,m,80,3.0,-1,a\n"
    ),
}


@pytest.mark.parametrize("text", READ.values(), ids=READ.keys())
def test_ordinary_tables_are_read_without_a_word(tmp_path: Path, text: str | bytes) -> None:
    said = answer_to(tmp_path, text, "--out", tmp_path / "c.parquet")
    assert (said.status, said.err) == (0, "")
    table = read_cohort(tmp_path / "c.parquet").table
    assert table["age"].tolist() == pytest.approx([45] * len(table))
    assert table["height"].tolist() == pytest.approx([175] * len(table), abs=0.6)
    assert table["sex"].tolist() == ["male"] * len(table)
    if "weight" in table:
        assert table["weight"].iloc[-1] == pytest.approx(80, abs=0.2)


UNUSED = {
    "fev1": ("1.5", "fev1_z, or a target"),
    "FVC": ("2.0", "fvc_z, or a target"),
    "pef": ("8", "a target"),
    "id": ("A1", "did you mean patient"),
    "race": ("4", "did you mean ethnicity"),
    "smoker": ("1", "column smoker is not used"),
}


@pytest.mark.parametrize("column", UNUSED)
def test_a_column_that_is_not_used_is_named(tmp_path: Path, models: Models, column: str) -> None:
    value, hint = UNUSED[column]
    text = f"age,height,sex,{column}\n45,175,male,{value}\n"
    said = answer_to(tmp_path, text, "--out", tmp_path / "c.parquet")
    assert said.status == 0
    assert said.err.startswith(f"note: column {column} is not used")
    assert said.err.count("\n") == 1
    assert hint in said.err
    assert column not in said.out
    assert hint in read_json(tmp_path / "c.json")["notes"][0]
    assert any(hint in warning for warning in read_cohort(tmp_path / "c.parquet").warnings())
    assert any(hint in warning for warning in drawn(models, MAN | {column: value}).warnings())


def test_a_column_that_is_not_used_is_named_for_partitions_too(tmp_path: Path) -> None:
    text = "age,height,sex,shoes,bmi\n45,175,male,42,26\n"
    said = answer_to(tmp_path, text, "--out", tmp_path / "parts", "--partition", 5)
    assert (said.status, said.err) == (0, "note: columns shoes, bmi are not used\n")
    assert read_json(tmp_path / "parts.json")["notes"] == ["columns shoes, bmi are not used"]


REFUSED = {
    "a mistyped weight": ("age,height,sex,weigth\n45,175,male,140\n", "weigth", "weight?"),
    "a z-score": ("age,height,sex,fev1z\n45,175,male,-3\n", "fev1z", "fev1_z?"),
    "a z-score turned round": ("age,height,sex,z_FEV1\n45,175,male,-3\n", "z_FEV1", "fev1_z?"),
    "a group": ("age,height,sex,ethnic\n45,175,male,4\n", "ethnic", "ethnicity?"),
    "names": ("patients,age,height,sex\nann,45,175,male\n", "patients", "patient?"),
    "unknown unit": ("age,height (hands),sex\n45,17,male\n", "hands", "cm"),
    "coded sex": ("age,height,sex (0=male)\n45,175,0\n", "0=male", "known"),
    "two heights": ("age,height,height (cm),sex\n45,175,170,male\n", "height (cm)", "keep one"),
    "another language": ("Alter,Größe,Geschlecht\n45,175,m\n", "Alter, Größe", "age"),
    "unknown group": (
        "age,height,sex,ethnicity\n45,175,male,3\n60,165,female,unknown\n",
        "patient 1: ethnicity 'unknown'",
        "leave the cell empty",
    ),
    "months": ("age,height,sex\n72,116,male\n", "months", "years (6)"),
    "more months": ("age,height,sex\n96,128,female\n", "months", "8 years"),
    "birth year": ("age,height,sex\n1979,175,male\n", "year of birth", "years"),
    "days": ("age,height,sex\n16436,175,male\n", "days", "years (45)"),
    "age with unit": ("age,height,sex\n45 y,175,male\n", "45 y", "in years"),
    "age range": ("age,height,sex\n6-7,116,male\n", "6-7", "no number"),
    "negative age": ("age,height,sex\n-45,175,male\n", "age -45", "outside"),
    "coded age": ("age,height,sex\n999,175,male\n", "missing value", "leave the row out"),
    "age 0": ("age,height,sex\n0,175,male\n", "age 0", "leave the row out"),
    "metres": ("age,height,sex\n45,1.75,male\n", "metres", "cm (175)"),
    "inches": ("age,height,sex\n45,69,male\n", "inches", "cm (175)"),
    "feet": ("age,height,sex\n45,5.9,male\n", "feet", "cm (180)"),
    "feet and inches": ("age,height,sex\n45,5'11,male\n", "feet and inches", "cm (180)"),
    "mm": ("age,height,sex\n45,1750,male\n", "mm", "cm (175)"),
    "height with unit": ("age,height,sex\n45,175 cm,male\n", "175 cm", "in cm"),
    "height 0": ("age,height,sex\n45,0,male\n", "missing value", "leave the row out"),
    "height 999": ("age,height,sex\n45,999,male\n", "missing value", "leave the row out"),
    "z-score -9": ("age,height,sex,fvc_z\n45,175,m,-9\n", "missing value", "cell empty"),
    "weight 0": ("age,height,sex,weight\n45,175,male,0\n", "weight 0", "leave the cell empty"),
    "weight -9": ("age,height,sex,weight\n45,175,male,-9\n", "weight -9", "leave the cell empty"),
    "weight -5": ("age,height,sex,weight\n45,175,male,-5\n", "weight -5", "leave the cell empty"),
    "weight 999": ("age,height,sex,weight\n45,175,male,999\n", "missing value", "empty"),
    "grams": ("age,height,sex,weight\n45,175,male,78000\n", "looks like g", "kg (78)"),
    "a heavy child": ("age,height,sex,weight\n6,116,male,300\n", "weight 300", "belong together"),
    "percent of predicted": ("age,height,sex,fev1_z\n45,175,male,65\n", "fev1_z 65", "percent"),
    "contradiction": (
        "age,height,sex,fev1_z,fvc_z\n45,175,male,3,-3\n",
        "patient 0 (45 years, 175 cm, man)",
        "FEV1 is more than FVC",
    ),
    "three z-scores": (
        "age,height,sex,fev1_z,fvc_z,fev1_fvc_z\n45,175,male,0,0,-4\n",
        "fev1_fvc_z",
        "leave it out",
    ),
    "sex 0": ("age,height,sex\n45,175,0\n", "sex '0'", "write the words"),
    "no sex": ("age,height,sex\n45,175,\n", "sex is missing", "fill it in"),
    "too old": ("age,height,sex\n82,175,male\n", "NHANES writes 80", "--extrapolate"),
    "too young": ("age,height,sex\n4,100,male\n", "age 4", "--extrapolate"),
}


@pytest.mark.parametrize(("text", "fault", "way_out"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_in_a_sentence(
    tmp_path: Path, text: str, fault: str, way_out: str
) -> None:
    said = answer_to(tmp_path, text, "--out", tmp_path / "c.parquet")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1), said.err
    assert fault in said.err
    assert way_out in said.err
    assert "patient 0.0" not in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["people.csv"]


# Targets and settings.

TARGETS = {
    "fev1=2100": "mL; give it in L (2.1)",
    "fev1=85": "percent of predicted",
    "fev1=-1": "fev1_z",
    "fev1=0": "outside",
    "fvc=12": "z-scores from the predicted",
    "pef=480": "L/min; give it in L/s (8)",
    "fev1_fvc=60": "percent; give a ratio (0.6)",
    "fev1_fvc=1.2": "outside",
    "fvc=2,fev1=3": "more than FVC",
    "fvc=4,fev1=3,fev1_fvc=0.6": "is not FEV1 over FVC",
    "fvc=4,fev1_fvc=0.9,pef=2": "more than PEF",
    "fev1=3,fev1_z=-1": "both say",
    "fev1_z=3,fvc_z=-3": "FEV1 is more than FVC",
    "fev1_z=65": "percent of predicted",
    "fvc_z=-20": "outside -8 to 8",
    "fev1=2,1": "decimal point",
    "fev1=2;fvc=3": "as in fev1=2.1",
    "fev1=2.1L": "as in fev1=2.1",
    "fev1=2.1,fev1=3": "twice",
    "fev1%=80": "did you mean fev1?",
    "fev1=nan": "no number",
    "weight=80": "no target can be set for weight",
    "fef2575=2": "no target can be set for fef2575",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_cannot_be_is_refused(tmp_path: Path, target: str) -> None:
    out = tmp_path / "c.parquet"
    said = answer(main, (*OPTIONS, *QUICK, "--target", target, "--out", out))
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1), said.err
    assert TARGETS[target] in said.err
    assert not list(tmp_path.iterdir())


def test_targets_are_met_however_they_are_written(models: Models) -> None:
    for target in ({"fev1": 2.1}, {"FEV1": np.float32(2.1)}, "fev1=2.1", " FEV1 = 2.1 "):
        made = drawn(models, MAN, target=target)
        assert made.table["fev1"].iloc[0] == pytest.approx(2.1, abs=0.02)
        assert made.warnings()[1:] == []
    both = drawn(models, MAN | {"fvc_z": -1.0}, target={"fev1": 2.1}).table
    assert both["fev1"].iloc[0] == pytest.approx(2.1, abs=0.02)
    with pytest.raises(DataError, match="target, and fev1_z a column"):
        drawn(models, MAN | {"fev1_z": -1.0}, target={"fev1": 2.1})
    with pytest.raises(DataError, match="a target and a column"):
        drawn(models, MAN | {"fev1_z": -1.0}, target={"fev1_z": -2.0})


SETTINGS = {
    "guidance below 0": {"guidance": -2},
    "guidance above 10": {"guidance": 30},
    "guidance nan": {"guidance": float("nan")},
    "guidance inf": {"guidance": float("inf")},
    "guidance in words": {"guidance": "high"},
    "no steps": {"steps": 0},
    "steps for ever": {"steps": 10**9},
    "no draws": {"draws": 0},
    "draws for ever": {"draws": 10**9},
    "draws as a float": {"draws": 2.5},
    "seed below 0": {"seed": -1},
    "seed as a float": {"seed": 1.5},
    "no batch": {"batch": 0},
    "target as a list": {"target": ["fev1"]},
    "target in words": {"target": {"fev1": "low"}},
}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_that_cannot_be_are_refused(models: Models, options: dict) -> None:
    with pytest.raises(DataError) as error:
        generate(MAN, models=models, device="cpu", **options)
    assert "\n" not in str(error.value)
    assert next(iter(options)) in str(error.value)


def test_guidance_0_is_explained(tmp_path: Path, models: Models) -> None:
    girl = {"age": 8, "height": 128, "sex": "female"}
    assert any(
        "guidance 0 ignores the person" in w for w in drawn(models, girl, guidance=0).warnings()
    )
    assert not any("guidance" in w for w in drawn(models, girl, guidance=1).warnings())
    said = answer(main, (*OPTIONS, *QUICK, "--guidance", 0))
    assert said.status == 0
    assert said.err.startswith("note: guidance 0 ignores the person")
    assert "guidance" not in said.out


@pytest.mark.parametrize(("age", "height"), [(6, 190), (8, 171)])
def test_a_build_that_is_unheard_of_is_noted(models: Models, age: int, height: int) -> None:
    person = MAN | {"age": age, "height": height}
    said = generate(person, 1, steps=1, models=models, redraws=0).warnings()
    assert any(f"{height} cm do not belong together" in sentence for sentence in said)


def test_one_patient_is_one(tmp_path: Path) -> None:
    said = answer(main, (*OPTIONS, *QUICK, "--out", tmp_path / "c.parquet"))
    assert "1 synthetic curve of 1 patient\n" in said.out


def test_somebody_of_82_who_was_measured_is_reconstructed_with_a_note() -> None:
    time = np.arange(0, 1.5, 0.01)
    volume = 3.0 * (1 - np.exp(-time / 0.6))
    with pytest.warns(UserWarning, match="the age lies beyond"):
        reconstruct(volume, time, {"age": 82, "height": 165, "sex": "F"}, draws=3)
    with pytest.warns(UserWarning, match="column shoes is not used"):
        reconstruct(volume, time, MAN | {"shoes": 42}, draws=3)
    with pytest.raises(DataError, match="looks like inches"):
        reconstruct(volume, time, MAN | {"height": 69}, draws=3)


def test_a_process_of_its_own_says_the_note_on_stderr(tmp_path: Path) -> None:
    """As a user sees it, with Python's own filters of warnings."""
    (tmp_path / "people.csv").write_text("age,height,sex,shoes\n45,175,male,42\n")
    code = "import sys; from spiro_diffusion.apps.generate import main; sys.exit(main())"
    call = [sys.executable, "-c", code, "--patients", "people.csv", *map(str, QUICK)]
    done = subprocess.run(
        call, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "note: column shoes is not used\n")
