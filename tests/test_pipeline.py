"""What crosses a process: the whole pipeline by papermill, and what a user meets when something is wrong."""

import dis
import json
import subprocess
import sys
import time
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
    """All six notebooks at profile smoke, in a folder of their own whose name has a space and an umlaut."""
    root = tmp_path_factory.mktemp("röot with space")
    done = spiro_run(
        "all",
        "--profile",
        "smoke",
        "--name",
        "smoke",
        "--root",
        str(root),
        "--nbs",
        str(ROOT / "nbs"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "written under" in done.stdout and "signals_L512.npy" in done.stdout
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
    """A loop variable named like a parameter would quietly change what a later cell is asked for."""
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
    flow, table = (
        np.load(processed / "signals_L512.npy"),
        pd.read_csv(processed / "metadata_aligned.csv"),
    )
    latents, codes = np.load(processed / "latents.npy"), np.load(processed / "codes.npy")
    assert (
        flow.dtype == np.float32
        and flow.shape == (len(table), 512)
        and (flow >= 0).all()
        and 3 < np.median(flow.max(1)) < 15
    )
    assert (
        list(table.columns[:4]) == ["SEQN", "age", "height", "gender"]
        and table.groupby("SEQN")["split"].nunique().max() == 1
    )
    assert (
        latents.dtype == np.float32
        and latents.shape[0] == len(table)
        and latents.shape[1] <= 8
        and latents.shape[2] == 32
    )
    assert codes.dtype == np.uint16 and codes.shape == (len(table), 32) and codes.max() < 512
    for model in ("vqvae", "cldm"):
        assert (smoke / "checkpoints" / model / "model.safetensors").is_file() and json.loads(
            (smoke / "checkpoints" / model / "config.json").read_text()
        )
    assert not [
        p for p in smoke.rglob("*") if p.suffix in (".pkl", ".pt", ".pth") or ".part" in p.name
    ]


def test_results(smoke):
    assert (smoke / "figures" / "generated_result.png").stat().st_size > 10_000
    metrics = json.loads((smoke / "figures" / "metrics.json").read_text())
    assert (
        metrics["profile"] == "smoke"
        and "simulated" in metrics["source"]
        and set(metrics["physics"].values()) == {1.0}
    )
    (parquet,) = (smoke / "data" / "generated").glob("*.parquet")
    cohort = pd.read_parquet(parquet)
    assert {"patient", "draw", "age", "height", "sex", "fvc", "fev1", "flow"} <= set(
        cohort.columns
    ) and len(cohort["flow"].iloc[0]) == 512


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
    assert (
        done.returncode == 2 and word in done.stderr and len(done.stderr.strip().splitlines()) == 1
    ), done.stderr
    assert not list(tmp_path.iterdir())


def test_bad_data_leaves_nothing_half_written(tmp_path):
    data = tmp_path / "nhanes"
    data.mkdir()
    for name in ("SPXRAW_G.xpt", "DEMO_G.XPT", "BMX_G.XPT"):
        (data / name).write_text("<!DOCTYPE html><html>Page not found</html>")
    done = spiro_run("00_data", "-p", "data_dir", str(data), "--root", str(tmp_path / "out"))
    assert done.returncode == 2 and "is a web page" in done.stderr.splitlines()[-1], done.stderr
    left = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert left == ["00_data_failed.ipynb"]


def test_import_is_quick_and_loads_no_torch():
    code = "import sys, time; t = time.perf_counter(); import spiro_diffusion; print(time.perf_counter() - t, 'torch' in sys.modules)"
    began = time.perf_counter()
    spent, torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert torch == "False" and float(spent) < 1.0, (spent, time.perf_counter() - began)
    light = "import sys, spiro_diffusion.data, spiro_diffusion.pipeline, spiro_diffusion.references; print('torch' in sys.modules, 'nbdev' in sys.modules, 'fastcore' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", light], capture_output=True, text=True, check=True
        ).stdout.split()
        == ["False"] * 3
    )
