"""Whole tests of digital patients: the command, and what has to hold of every session."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion import generate, generate_sessions, more_trials, read_sessions
from spiro_diffusion.apps.console import answer
from spiro_diffusion.apps.generate import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.formats.recognise import read_recordings
from spiro_diffusion.formats.written import WRITERS
from spiro_diffusion.generation import session
from spiro_diffusion.generation.drawing import load_models
from spiro_diffusion.generation.faults import KINDS
from spiro_diffusion.spirometry.clock import volume_on_clock

NEAR = 1e-4  # L/s, to which a curve does not depend on its batch
KEYS = ["patient", "session", "test", "trial"]
PEOPLE = pd.DataFrame(
    {
        "patient": ["007", "ann", "bob", "di"],
        "age": [7, 34, 79, 16],
        "height": [122, 165.0, 171, 160],
        "sex": ["male", "female", "male", "female"],
    }
)


@pytest.fixture(scope="module")
def models():
    return load_models()


@pytest.fixture(scope="module")
def made(models):
    return generate_sessions(PEOPLE, 2, seed=5, post=True, models=models, device="cpu")


def command(*argv: object, cwd: Path) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    code = "import sys; from spiro_diffusion.apps.generate import main; sys.exit(main())"
    call = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(call, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_the_tables_belong_together(made):
    assert len(made.trials) == len(made.flow)
    assert len(made.tests) == len(PEOPLE) * 2 * 2
    grouped = made.trials.groupby(KEYS[:3], sort=False)
    assert (grouped["best"].sum() == 1).all()
    assert grouped.size().tolist() == made.tests["manoeuvres"].tolist()
    for _, theirs in grouped:
        assert theirs["trial"].tolist() == list(range(1, len(theirs) + 1))
    of_trials = made.trials.set_index(KEYS)["fault"]
    for label in made.labels.itertuples():
        assert label.fault in of_trials[tuple(getattr(label, name) for name in KEYS)]
        assert label.fault in KINDS
        assert 0 <= label.start_s <= label.end_s


def test_curves_are_curves(made):
    assert made.flow.dtype == np.float32
    assert np.isfinite(made.flow).all()
    assert made.flow.min() >= 0
    litres = volume_on_clock(made.flow)[:, -1]
    np.testing.assert_allclose(litres, made.trials["fvc"], rtol=1e-4)


def test_the_best_is_what_generate_draws(made, models):
    cohort = generate(PEOPLE, 1, 5, models=models, device="cpu")
    first = (made.trials["session"] == 1) & (made.trials["test"] == "pre")
    best = made.flow[(first & made.trials["best"]).to_numpy()]
    np.testing.assert_allclose(best, cohort.flow, atol=NEAR)


def test_nobody_depends_on_others_or_on_batches(made, models, monkeypatch):
    monkeypatch.setattr(session, "VISITS_AT_ONCE", 3)
    monkeypatch.setattr(session, "REPEATS_AT_ONCE", 5)
    some = PEOPLE.iloc[[2, 0]]
    again = generate_sessions(some, 2, seed=5, post=True, models=models, device="cpu")
    for name in some["patient"]:
        mine = (again.trials["patient"] == name).to_numpy()
        theirs = (made.trials["patient"] == name).to_numpy()
        np.testing.assert_allclose(again.flow[mine], made.flow[theirs], atol=NEAR)
        pd.testing.assert_frame_equal(
            again.trials[mine].reset_index(drop=True),
            made.trials[theirs].reset_index(drop=True),
            atol=1e-3,
        )
    pd.testing.assert_series_equal(
        again.labels["patient"].drop_duplicates().reset_index(drop=True),
        pd.Series(["bob", "007"], name="patient"),
    )


def test_a_second_test_changes_nothing_of_the_first(made, models):
    alone = generate_sessions(PEOPLE, 1, seed=5, models=models, device="cpu")
    first = (made.trials["session"] == 1) & (made.trials["test"] == "pre")
    np.testing.assert_allclose(alone.flow, made.flow[first.to_numpy()], atol=NEAR)


def test_no_trial_is_a_copy(made):
    for _, theirs in made.trials.groupby(KEYS[:3], sort=False):
        flow = made.flow[theirs.index]
        apart = np.abs(flow[:, None] - flow[None]).max(2)
        assert apart[~np.eye(len(flow), dtype=bool)].min(initial=9) > 0.05  # L/s


def test_another_seed_gives_others(made, models):
    other = generate_sessions(PEOPLE, 2, seed=6, post=True, models=models, device="cpu")
    shared = min(len(other), len(made))
    assert np.abs(other.flow[:shared] - made.flow[:shared]).max(1).min() > 0.01


@pytest.mark.parametrize("manoeuvres", [1, 2, 17])
def test_any_number_of_manoeuvres(manoeuvres, models):
    some = generate_sessions(PEOPLE, manoeuvres=manoeuvres, models=models, device="cpu")
    assert (some.tests["manoeuvres"] == manoeuvres).all()


def test_a_repeat_falls_short_of_the_best_and_is_graded(made):
    trials = made.trials
    whole = trials[(trials["fault"] == "") & ~trials["best"]]
    best = trials[trials["best"]].set_index(KEYS[:3])["fvc"]
    theirs = best.loc[list(map(tuple, whole[KEYS[:3]].to_numpy()))].to_numpy()
    assert (whole["fvc"].to_numpy() <= theirs * 1.0001).all()
    failing = trials[~trials["acceptable"]]
    assert (failing["why"] != "").all()
    assert (trials.loc[trials["acceptable"], "why"] == "").all()


def test_bad_counts_and_options():
    for options in ({"manoeuvres": 18}, {"sessions": 0}, {"post": 1}, {"seed": -1}):
        with pytest.raises(DataError):
            generate_sessions(PEOPLE, **options)
    with pytest.raises(TypeError, match="did you mean steps"):
        generate_sessions(PEOPLE, step=3)
    with pytest.raises(DataError, match="no air was moved"):
        more_trials(np.zeros(300), np.arange(300) / 100, {"age": 40, "height": 170, "sex": 1})


@pytest.mark.parametrize("kind", WRITERS)
def test_the_command_in_each_format(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PEOPLE.to_csv("folk.csv", index=False)
    out = f"tests{WRITERS[kind].suffix}"
    whole = ("--patients", "folk.csv", "--sessions", 1, "--manoeuvres", 3, "--format", kind)
    done = answer(main, (*whole, "--labels", "--out", out))
    assert done.status == 0, done.err
    assert "4 synthetic tests, 12 manoeuvres of 4 patients" in done.out
    assert Path("tests_labels.csv").is_file()
    if WRITERS[kind].suffix:
        assert len(read_recordings(out)) == 12
    again = answer(main, (*whole, "--labels", "--out", out))
    assert again.status == 2
    assert "exists" in again.err


def test_the_patients_are_not_written_over(tmp_path, monkeypatch):
    PEOPLE.to_csv(tmp_path / "people.csv", index=False)
    whole = ["--patients", "people.csv", "--sessions", 1, "--out", "tests.csv", "--overwrite"]
    monkeypatch.chdir(tmp_path)
    done = answer(main, whole)
    assert done.status == 2
    assert "would be written over" in done.err


def test_processes_agree(tmp_path):
    people = PEOPLE.assign(patient=["1", "2", "3", "4"])
    people.to_csv(tmp_path / "people.csv", index=False)
    whole = ["--patients", "people.csv", "--sessions", 1, "--post", "--seed", 3]
    for name in ("a", "b"):
        done = command(*whole, "--out", f"{name}.parquet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b = (read_sessions(tmp_path / f"{name}.parquet") for name in "ab")
    pd.testing.assert_frame_equal(a.trials, b.trials)
    np.testing.assert_array_equal(a.flow, b.flow)
    here = generate_sessions(people, seed=3, post=True, device="cpu")
    np.testing.assert_allclose(here.flow, a.flow, atol=NEAR)
    assert a.info["synthetic"]
