"""Every command of the README is run as it stands there.

Those that take minutes or the network say why they are not.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.apps import download, generate, reconstruct, run

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"```(sh|python)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S
)
LINES = [
    line.split(" #")[0].strip()
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if line.strip()
]
SNIPPETS = [block for kind, block in BLOCKS if kind == "python"]
COMMANDS = {m.COMMAND.name: m.COMMAND for m in (generate, reconstruct, download, run)}
QUICK = ("spiro_generate", "spiro_reconstruct")
NOT_RUN = {
    "spiro_fetch": "downloads from CDC; tests/test_fetch.py has a local mock server",
    "make": "takes minutes; CI and tests/test_pipeline.py run the same",
    "spiro_run": "takes minutes; tests/test_pipeline.py runs it at profile smoke",
}
MINUTES = ("papermill", "spiro_run 04_inference")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as a reader has it: the notebooks, people.csv, blow.csv, session.csv."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(
        ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    shutil.copytree(ROOT / "bench" / "results", folder / "bench" / "results")
    pd.DataFrame(
        {
            "patient": ["ann", "bob"],
            "age": [61, 45],
            "height": [168, 175],
            "sex": ["female", "male"],
        }
    ).to_csv(folder / "people.csv", index=False)
    time = np.arange(0, 3.01, 0.01)
    pd.DataFrame(
        {"time": time, "volume": 2.9 * (1 - np.exp(-np.maximum(time - 0.05, 0) / 0.6))}
    ).to_csv(folder / "blow.csv", index=False)
    trials = [
        pd.DataFrame(
            {
                "ID": "ann",
                "Trial": trial,
                "Age": 61,
                "Height (cm)": 168,
                "Sex": "F",
                "Time (s)": time,
                "Volume (L)": size * (1 - np.exp(-np.maximum(time - 0.05, 0) / 0.6)),
            }
        )
        for trial, size in ((1, 2.9), (2, 2.8))
    ]
    pd.concat(trials).to_csv(folder / "session.csv", index=False)
    return folder


def execute(line: str, place: Path) -> subprocess.CompletedProcess:
    program, *rest = shlex.split(line)
    argv = [
        str(Path(sys.executable).parent / Path(program).name),
        *rest,
        *(["--overwrite"] if "spiro_generate" in program or "spiro_reconstruct" in program else []),
    ]
    return subprocess.run(
        argv,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "MPLBACKEND": "agg"},
    )


@pytest.mark.parametrize("line", [s for s in LINES if any(f"bin/{q}" in s for q in QUICK)])
def test_a_quick_command(line, place):
    done = execute(line, place)
    assert done.returncode == 0, done.stderr
    assert all(
        (place / name).stat().st_size > 1000 for name in re.findall(r"--(?:out|figure) (\S+)", line)
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", [s for s in LINES if any(f"bin/{m}" in s for m in MINUTES)])
def test_a_command_of_minutes(line, place):
    done = execute(line, place)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_understood(line):
    """Its options exist; `make` knows what to do; and there is a reason if it is not run here."""
    program, *rest = shlex.split(line)
    name = Path(program).name
    if name in COMMANDS:
        COMMANDS[name].parser().parse_args(rest)
    elif name == "make":
        assert subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True).returncode == 0
    assert name in NOT_RUN or name in QUICK or name == "papermill"


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet(number, place, monkeypatch):
    monkeypatch.chdir(place)
    blow = pd.read_csv("blow.csv")
    exec(
        compile(SNIPPETS[number], f"README.md, snippet {number}", "exec"),
        {"volume": blow["volume"].to_numpy(), "time": blow["time"].to_numpy()},
    )
