"""The wheel is small and works elsewhere, offline, without the notebooks' tools."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PERSON = ["--age", 45, "--height", 175, "--sex", "male"]
BARRED = """
import socket, sys
BARRED = set(
    "nbdev fastcore execnb ghapi IPython ipykernel ipywidgets jupyterlab papermill"
    " nbformat pytest sklearn"
    .split()
)

class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BARRED:
            raise ModuleNotFoundError(name + " is not there")

def offline(*_):
    raise OSError("no network here")

sys.meta_path.insert(0, Bar())
socket.socket.connect = socket.create_connection = offline
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of what git has, built in a copy."""
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.decode().split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """The bin/ of an environment with this wheel; other packages are lent, but for the barred."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(home / "bin" / "python"),
            "install",
            "--no-deps",
            "--quiet",
            str(wheel),
        ],
        check=True,
    )
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(BARRED)
    return home / "bin"


def run(argv: list, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(a) for a in argv],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 12e6


def test_it_is_the_wheel_that_is_used(clean, tmp_path):
    done = run(
        [
            clean / "python",
            "-c",
            "import spiro_diffusion, sys; print(spiro_diffusion.__file__, 'torch' in sys.modules)",
        ],
        tmp_path,
    )
    assert str(clean.parent) in done.stdout, done.stderr
    assert done.stdout.split()[-1] == "False"


def test_a_cohort_and_a_blow_completed(clean, tmp_path):
    generate = [clean / "spiro_generate", *PERSON]
    cohort = ["-n", 3, "--seed", 7, "--out", "cohort.parquet", "--figure", "loops.png"]
    done = run([*generate, *cohort], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "cohort.parquet")) == 3
    assert (tmp_path / "loops.png").stat().st_size > 10_000
    done = run([*generate, "--out", "blow.csv"], tmp_path)
    assert done.returncode == 0, done.stderr
    blow = pd.read_csv(tmp_path / "blow.csv").rename(columns=lambda name: name.split("_")[0])
    blow.query("time <= 3")[["time", "volume"]].to_csv(tmp_path / "cut.csv", index=False)
    reconstruct = [clean / "spiro_reconstruct", "cut.csv", *PERSON]
    done = run([*reconstruct, "--draws", 20, "--out", "whole.parquet"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "whole.parquet")) == 20
