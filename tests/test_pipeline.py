"""The whole pipeline by papermill, and what a user meets when something is wrong."""

import dis
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.apps.run import NOTEBOOKS

ROOT = Path(__file__).parent.parent


def spiro_run(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).parent / "spiro_run"), *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """All six notebooks at profile smoke, in a folder whose name has a space and an umlaut."""
    root = tmp_path_factory.mktemp("röot with space")
    nbs = str(ROOT / "nbs")
    named = ("--profile", "smoke", "--name", "smoke")
    done = spiro_run("all", *named, "--root", str(root), "--nbs", nbs)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "written under" in done.stdout
    assert "signals_L512.npy" in done.stdout
    return root


def test_six_notebooks_were_executed(smoke):
    for name in NOTEBOOKS:
        book = json.loads((smoke / "runs" / "smoke" / f"{name}.ipynb").read_text(encoding="utf-8"))
        cells = [
            c for c in book["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()
        ]
        assert all(c["execution_count"] for c in cells), name
        assert any("image/png" in o.get("data", {}) for c in cells for o in c["outputs"]), (
            f"{name} shows no figure"
        )
    assert not list((smoke / "runs" / "smoke").glob("*_failed.ipynb"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_cell_overwrites_a_parameter(name):
    """A loop variable named like a parameter would quietly change what a later cell does."""
    cells = [
        c
        for c in json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    ]
    stored = [
        {
            i.argval
            for i in dis.get_instructions(compile("".join(c["source"]), name, "exec"))
            if i.opname == "STORE_NAME"
        }
        for c in cells
    ]
    (k,) = (k for k, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", []))
    assert not [names & stored[k] for names in stored[k + 1 :] if names & stored[k]]


def test_artefacts_fit_each_other(smoke):
    processed = smoke / "data" / "processed"
    flow = np.load(processed / "signals_L512.npy")
    table = pd.read_csv(processed / "metadata_aligned.csv")
    latents = np.load(processed / "latents.npy")
    codes = np.load(processed / "codes.npy")
    assert flow.dtype == np.float32
    assert flow.shape == (len(table), 512)
    assert (flow >= 0).all()
    assert 3 < np.median(flow.max(1)) < 15
    assert list(table.columns[:4]) == ["SEQN", "age", "height", "gender"]
    assert table.groupby("SEQN")["split"].nunique().max() == 1
    assert latents.dtype == np.float32
    assert latents.shape[0] == len(table)
    assert latents.shape[1] <= 8
    assert latents.shape[2] == 32
    assert codes.dtype == np.uint16
    assert codes.shape == (len(table), 32)
    assert codes.max() < 512
    for model in ("vqvae", "cldm"):
        assert (smoke / "checkpoints" / model / "model.safetensors").is_file()
        assert json.loads((smoke / "checkpoints" / model / "config.json").read_text())
    assert not [
        p for p in smoke.rglob("*") if p.suffix in (".pkl", ".pt", ".pth") or ".part" in p.name
    ]


def test_results(smoke):
    assert (smoke / "runs" / "smoke" / "figures" / "generated_result.png").stat().st_size > 10_000
    metrics = json.loads((smoke / "runs" / "smoke" / "figures" / "metrics.json").read_text())
    assert metrics["profile"] == "smoke"
    assert "simulated" in metrics["source"]
    assert set(metrics["physics"].values()) == {1.0}
    cohort = pd.read_parquet(smoke / "runs" / "smoke" / "cohort.parquet")
    assert {"patient", "draw", "age", "height", "sex", "fvc", "fev1", "flow"} <= set(cohort.columns)
    assert len(cohort["flow"].iloc[0]) == 512


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("all", "--data", "no/such/folder"), "no/such/folder"),
        (("04_inference", "-p", "heigth", "180"), "did you mean height"),
        (("04_inference", "-p", "age", "old"), "age must be a number"),
        (("06_magic",), "06_magic.ipynb does not exist"),
    ],
)
def test_one_sentence(args, word, tmp_path):
    done = spiro_run(*args, "--root", str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_bad_data_leaves_nothing_half_written(tmp_path):
    data = tmp_path / "nhanes"
    data.mkdir()
    for name in ("SPXRAW_G.xpt", "DEMO_G.XPT", "BMX_G.XPT"):
        (data / name).write_text("<!DOCTYPE html><html>Page not found</html>")
    done = spiro_run("00_data", "-p", "data_dir", str(data), "--root", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    assert "is a web page" in done.stderr.splitlines()[-1]
    left = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert left == ["00_data_failed.ipynb"]


def modules_after(statement: str) -> set[str]:
    """The modules that a new process has loaded after `statement`."""
    code = f"import sys; {statement}; print(*sys.modules)"
    argv = [sys.executable, "-c", code]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def test_import_loads_little():
    assert not {"torch", "pandas", "numpy"} & modules_after("import spiro_diffusion")


def test_what_needs_no_model_loads_no_torch():
    names = "prepare, zscores, indices, read_table, read_waveform"
    loaded = modules_after(f"from spiro_diffusion import {names}")
    assert not {"torch", "nbdev", "fastcore"} & loaded


def test_help_loads_no_torch():
    statement = (
        "import contextlib, os; from spiro_diffusion.apps.generate import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, 'w')):\n"
        "    main(['--help'])\n"
    )
    code = f"import sys\n{statement}print('torch' in sys.modules)"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
