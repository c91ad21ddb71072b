"""The command spiro_generate: bad input, and the same cohort whichever way it is requested."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from spiro_diffusion import __version__
from spiro_diffusion.apps.generate import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import read_json, shipped_weights
from spiro_diffusion.data import prepare
from spiro_diffusion.generation import drawing
from spiro_diffusion.generation.cohort import read_cohort
from spiro_diffusion.generation.drawing import load_models
from spiro_diffusion.inference import generate
from spiro_diffusion.spirometry.indices import indices_on_clock

NEAR = 1e-4  # L/s, to which a curve does not depend on its batch
MAN = ["--age", "45", "--height", "175", "--sex", "male"]


def command(*argv: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    code = "import sys; from spiro_diffusion.apps.generate import main; sys.exit(main())"
    call = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(call, capture_output=True, text=True, cwd=cwd, timeout=120)


def status_of(argv: list[str]) -> int:
    """The exit status of the command, run in this process."""
    try:
        return main(argv)
    except SystemExit as leave:
        return leave.code


BAD = {
    "age too high": (["--age", "85", *MAN[2:]], "age 85"),
    "age too low": (["--age", "3", *MAN[2:]], "age 3"),
    "no number": (["--age", "old", *MAN[2:]], "--age"),
    "not a number": (["--age", "nan", *MAN[2:]], "age"),
    "metres": ([*MAN[:2], "--height", "1.75", *MAN[4:]], "metres"),
    "inches": ([*MAN[:2], "--height", "69", *MAN[4:]], "inches"),
    "giant": ([*MAN[:2], "--height", "250", *MAN[4:]], "height 250"),
    "sex": ([*MAN[:4], "--sex", "4"], "sex"),
    "no sex": (MAN[:4], "--sex"),
    "no draws": ([*MAN, "-n", "0"], "draws"),
    "no file": (["--patients", "none.csv"], "none.csv does not exist"),
    "empty file": (["--patients", "empty.csv"], "empty.csv"),
    "no rows": (["--patients", "header.csv"], "no patients"),
    "no column": (["--patients", "column.csv"], "height"),
    "missing value": (["--patients", "hole.csv"], "height"),
    "output there": ([*MAN, "--out", "there.parquet"], "there.parquet exists"),
    "record there": ([*MAN, "--out", "record.parquet"], "record.json exists"),
    "figure's kind": ([*MAN, "--figure", "loops.xyz"], "loops.xyz"),
    "unknown option": ([*MAN, "--colour", "red"], "--colour"),
    "beyond everything": (["--age", "120", *MAN[2:], "--extrapolate"], "age 120"),
    "target unknown": ([*MAN, "--target", "fev3=2"], "fev3"),
    "target no number": ([*MAN, "--target", "fev1=much"], "fev1=much"),
    "guidance": ([*MAN, "--guidance", "nan"], "guidance"),
    "device": ([*MAN, "--device", "abacus"], "abacus"),
    "weight in words": (["--patients", "heavy.csv"], "weight 'heavy'"),
    "named twice": (["--patients", "twice.csv"], "named twice"),
    "no format": ([*MAN, "--out", "cohort.xlsx"], "cohort.xlsx"),
    "no folder for partitions": ([*MAN, "--partition", "5"], "--out"),
    "partitions of nothing": ([*MAN, "--partition", "-5", "--out", "parts"], "partition"),
    "no scheduler": ([*MAN, "--scheduler", "nonsense", "--out", "parts"], "nonsense"),
    "another folder": ([*MAN, "--partition", "5", "--out", "full"], "full"),
}


FILES = {
    "empty.csv": "",
    "header.csv": "age,height,sex\n",
    "column.csv": "age,sex\n45,male\n",
    "hole.csv": "age,height,sex\n45,,male\n",
    "there.parquet": "mine",
    "record.json": "mine",
    "heavy.csv": "age,height,sex,weight\n45,175,male,heavy\n",
    "twice.csv": "patient,age,height,sex\n7,45,175,male\n7,46,175,male\n",
    "full/mine.txt": "mine",
}


@pytest.mark.parametrize(("argv", "word"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_status_2(
    tmp_path: Path, monkeypatch, capfd, argv: list[str], word: str
) -> None:
    (tmp_path / "full").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert status_of(argv) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert word in printed.err
    assert printed.err.count("\n") == 1, printed.err
    left = {
        path.relative_to(tmp_path).as_posix(): path.read_text()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert left == FILES, "nothing written, nothing changed"


WEIGHTS = [f"{m}/{f}" for m in ("vqvae", "cldm") for f in ("config.json", "model.safetensors")]
FAULTS = {
    "cldm/model.safetensors": lambda content: content[:5000],
    "vqvae/model.safetensors": lambda content: b"<html>",
    "cldm/config.json": lambda content: b'{"layers": 3}',
    "vqvae/config.json": lambda content: b"\x89PNG",
}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A copy of the shipped weights as the checkpoints of a run in tmp_path."""
    for name in WEIGHTS:
        path = tmp_path / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((shipped_weights() / name).read_bytes())
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", FAULTS)
def test_checkpoints_that_are_none_are_named(checkpoints: Path, name: str) -> None:
    path = checkpoints / name
    path.write_bytes(FAULTS[name](path.read_bytes()))
    with pytest.raises(DataError) as error:
        load_models(checkpoints.parent)
    assert path.parent.name in str(error.value)
    assert "\n" not in str(error.value)


def test_command_names_bad_checkpoints(checkpoints: Path, capfd) -> None:
    (checkpoints / "cldm/config.json").write_bytes(b"{}")
    assert status_of([*MAN, "--run-dir", str(checkpoints.parent)]) == 2
    printed = capfd.readouterr()
    assert "cldm" in printed.err
    assert printed.err.count("\n") == 1


LARGEST_FILE = 20_000  # bytes; the system then refuses to let a file grow, as on a full disk


@pytest.mark.parametrize(
    ("out", "kind"),
    [
        ("c.parquet", ["--format", "parquet"]),
        ("c.csv", ["--format", "csv"]),
        ("c.npz", ["--format", "npz"]),
        ("c", ["--format", "nhanes"]),
        ("parts", ["--partition", "60"]),
    ],
)
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch, capsys, out: str, kind: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, hard))
    try:
        status = status_of([*MAN, "-n", "60", "--steps", "1", "--out", out, *kind])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert status == 2
    assert error.splitlines()[-1].startswith("spiro_generate:")
    assert "could not be written" in error
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == (["parts.json"] if out == "parts" else [])


def test_every_format_holds_the_same_curves(tmp_path: Path) -> None:
    people = pd.DataFrame({"patient": ["ann", "bob"], "age": [45.5, 12], "height": [165, 150]})
    people = people.assign(sex=["female", "male"], test=["pre", "post"])
    cohort = generate(people, draws=3, steps=2)
    cohort.save(tmp_path / "c.npz")
    cohort.save(tmp_path / "d.csv")
    cohort.save(tmp_path / "nhanes", file_format="nhanes")

    with np.load(tmp_path / "c.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["flow"], cohort.flow)
        assert arrays["patient"].tolist() == cohort.table["patient"].tolist()

    volume = pd.read_csv(tmp_path / "d.csv").groupby(["patient", "draw"])["volume_L"].max()
    np.testing.assert_allclose(volume, cohort.table["fvc"], atol=1e-4)

    report = prepare(tmp_path / "nhanes", tmp_path / "processed")
    assert report["simulated"]
    assert report["blows_kept"] == 6
    who = pd.read_csv(tmp_path / "processed/metadata_aligned.csv")
    assert who["age"].tolist() == cohort.table["age"].tolist()
    assert who["test"].tolist() == ["pre"] * 3 + ["post"] * 3
    indices = indices_on_clock(np.load(tmp_path / "processed/signals_L512.npy"))
    for name, most in {"fvc": 0.002, "fev1": 0.01, "pef": 0.15}.items():
        assert (indices[name] - cohort.table[name]).abs().max() < most, name


def test_each_patient_has_the_requested_z_scores_and_is_as_if_alone(tmp_path: Path) -> None:
    people = pd.DataFrame({"patient": list("abcd"), "age": [45, 60, 30, 50]})
    people = people.assign(height=[175, 170, 165, 180], sex=[1, 2, 2, 1])
    people["fvc_z"] = [-2, np.nan, -1, np.nan]
    people["fev1_z"] = [np.nan, -2, -1.5, np.nan]
    people["fev1_fvc_z"] = [np.nan, np.nan, np.nan, -3]
    people.to_csv(tmp_path / "people.csv", index=False)
    path = tmp_path / "c.parquet"
    assert main(["--patients", str(tmp_path / "people.csv"), "-n", "2", "--out", str(path)]) == 0
    cohort = read_cohort(path)
    for name in ("fvc_z", "fev1_z", "fev1_fvc_z"):
        assert (cohort.table[name] - cohort.table[f"{name}_asked"]).abs().max() < 0.05, name
    for k in range(4):
        alone = people[k : k + 1].dropna(axis=1)
        in_cohort = cohort.flow[2 * k : 2 * k + 2]
        np.testing.assert_allclose(generate(alone, draws=2).flow, in_cohort, atol=NEAR)
        conditioned = generate(alone, draws=2, exact=False).flow
        assert np.abs(conditioned - in_cohort).max() > 100 * NEAR


def test_help_needs_no_torch() -> None:
    code = """
import sys, spiro_diffusion.inference
from spiro_diffusion.apps.generate import main
try:
    main(["--help"])
except SystemExit:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("False")


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    columns = {"age": [45, 12, 70], "height": [175.0, 150, 160], "sex": ["male", "female", 2]}
    return pd.DataFrame(columns)


def test_command_gives_the_cohort_of_generate(tmp_path: Path, people: pd.DataFrame) -> None:
    people.to_csv(tmp_path / "people.csv", index=False)
    argv = ["--patients", "people.csv", "--draws", 7, "--seed", 3, "--out", "cohort.parquet"]
    done = command(*argv, "--figure", "loops.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loops.png").stat().st_size > 10_000
    info = read_json(tmp_path / "cohort.json")
    assert info["synthetic"] is True
    assert set(info["weights_sha256"]) == {"vqvae", "cldm"}
    written = read_cohort(tmp_path / "cohort.parquet")
    assert written.flow.shape == (21, 512)
    assert written.flow.dtype == np.float32
    assert (written.flow >= 0).all()
    cohort = generate(people, draws=7, seed=3)
    np.testing.assert_allclose(cohort.flow, written.flow, atol=NEAR)
    pd.testing.assert_frame_equal(cohort.table, written.table, atol=NEAR)
    again = command("--patients", "people.csv", "--out", "cohort.parquet", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists" in again.stderr


OPTIONS = {
    "as trained": {},
    "guided": {"guidance": 2.0},
    "steered to a value": {"target": {"fev1": 2.1}},
    "steered to two z-scores": {"target": {"fev1_z": -2.0, "fvc_z": -1.0}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_curve_does_not_depend_on_its_batch(people: pd.DataFrame, options: dict) -> None:
    cohort = generate(people, draws=4, seed=3, **options)
    for batch in (1, 4):
        other = generate(people, draws=4, seed=3, batch=batch, **options)
        np.testing.assert_allclose(other.flow, cohort.flow, atol=NEAR)
    assert np.abs(generate(people, draws=4, seed=4, **options).flow - cohort.flow).max() > 0.1


def test_every_option_is_a_keyword(people: pd.DataFrame) -> None:
    """All options at once are the settings of the record, with models passed or found."""
    chosen = {"guidance": 1.5, "steps": 3, "target": {"fev1_z": -1.0}, "redraws": 0}
    chosen |= {"exact": False, "extrapolate": True}
    weights = {"vqvae": shipped_weights("vqvae"), "cldm": shipped_weights("cldm")}
    cohort = generate(people, draws=2, seed=3, models=load_models(**weights), **chosen)
    assert cohort.info | {"draws": 2, "seed": 3, **chosen} == cohort.info
    found = generate(people, draws=2, seed=3, batch=3, run_dir=None, **weights, **chosen)
    np.testing.assert_allclose(found.flow, cohort.flow, atol=NEAR)
    assert generate(people, target=None).info["target"] == {}
    with pytest.raises(TypeError, match="did you mean redraws"):
        generate(people, redraw=1)


def test_without_package_metadata_the_version_is_the_source_s(monkeypatch) -> None:
    """As from a checkout on PYTHONPATH, which nobody installed."""

    def not_installed(package: str) -> str:
        if package == "spiro-diffusion":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(drawing, "version", not_installed)
    drawing.version_of.cache_clear()
    try:
        versions = generate({"age": 45, "height": 175, "sex": "male"}).info["versions"]
    finally:
        drawing.version_of.cache_clear()
    assert versions["spiro-diffusion"] == __version__
    assert versions["torch"] == version("torch")


@pytest.fixture
def with_tf32() -> Iterator[tuple[Any, Any]]:
    """torch's settings of products and of convolutions, which allow TF32 in the test."""
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "tf32"
    yield parts
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision


def test_curves_are_drawn_and_measured_alike_everywhere(with_tf32: tuple[Any, Any]) -> None:
    """No TF32 while drawing, however torch is set; what is beside a curve was measured on it."""
    seen = set()

    class Watched(drawing.Models):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            seen.update(part.fp32_precision for part in with_tf32)
            return super().decode(latents)

    loaded = load_models()
    models = Watched(loaded.vqvae, loaded.cldm, loaded.sha256)
    people = pd.DataFrame({"age": [45, 12], "height": [175, 150], "sex": ["male", "female"]})
    made = generate(people, 9, models=models, device="cpu", batch=4, target={"fev1": 2.0})
    assert seen == {"ieee"}
    assert {part.fp32_precision for part in with_tf32} == {"tf32"}
    measured = indices_on_clock(made.flow)
    pd.testing.assert_frame_equal(made.table[list(measured)], measured, check_exact=True)
