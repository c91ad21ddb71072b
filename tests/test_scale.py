"""A cohort in partitions on real processes: a killed worker, a killed run, and the same bytes as one process writes."""

import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import locked, read_json
from spiro_diffusion.generation.cohort import read_cohort
from spiro_diffusion.generation.drawing import DrawSettings
from spiro_diffusion.generation.partitions import generate_partitions
from spiro_diffusion.inference import generate

PEOPLE = pd.DataFrame(
    {
        "patient": [f"p{i}" for i in range(12)],
        "age": np.linspace(10, 75, 12),
        "height": np.linspace(140, 185, 12),
        "sex": [1, 2] * 6,
        "effort": ["A"] * 9 + [None] * 3,
    }
)
HOW = DrawSettings(draws=20, seed=5, steps=4)  # 240 curves, 12 partitions of 20


def digests(folder: Path) -> dict[str, str]:
    return {
        p.name: sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("part-*.parquet"))
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The cohort as one process writes it."""
    return generate_partitions(PEOPLE, tmp_path_factory.mktemp("alone") / "cohort", HOW, size=20)


def test_partitions_are_the_cohort_in_one_piece(alone):
    whole, parts = generate(PEOPLE, draws=20, seed=5, steps=4), read_cohort(alone)
    assert np.array_equal(parts.flow, whole.flow) and len(digests(alone)) == 12
    pd.testing.assert_frame_equal(parts.table, whole.table)
    assert len(pd.read_parquet(alone)) == 240, "one table for whatever reads Parquet"


def test_a_worker_killed_in_the_middle_changes_nothing(alone, tmp_path):
    distributed = pytest.importorskip("distributed")
    folder = tmp_path / "cohort"
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        with distributed.Client(cluster) as client:
            victim, killed = next(iter(client.run(os.getpid).values())), threading.Event()

        def kill() -> None:
            while not digests(folder):
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)
            killed.set()

        threading.Thread(target=kill, daemon=True).start()
        generate_partitions(PEOPLE, folder, HOW, size=20, scheduler=cluster.scheduler_address)
    assert killed.is_set() and digests(folder) == digests(alone)
    assert read_json(tmp_path / "cohort.json") == read_json(
        alone.with_suffix(".json")
    ) and not list(folder.glob(".*"))


def test_a_killed_run_goes_on_with_what_is_missing(alone, tmp_path):
    PEOPLE.to_csv(tmp_path / "people.csv", index=False)
    code = "import sys; from spiro_diffusion.commands import main; sys.exit(main())"
    argv = [
        sys.executable,
        "-c",
        code,
        "--patients",
        "people.csv",
        "--draws",
        "20",
        "--seed",
        "5",
        "--steps",
        "4",
        "--out",
        "cohort",
        "--partition",
        "20",
    ]
    first = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while len(digests(tmp_path / "cohort")) < 3:
        time.sleep(0.02)
    first.kill(), first.wait()
    there = {p: p.stat().st_mtime_ns for p in (tmp_path / "cohort").glob("part-*.parquet")}
    assert 3 <= len(there) < 12 and read_json(tmp_path / "cohort.json")["complete"] is False
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "240 synthetic curves of 12 patients" in done.stdout, (
        done.stderr
    )
    assert (
        digests(tmp_path / "cohort") == digests(alone)
        and {p: p.stat().st_mtime_ns for p in there} == there
    )
    assert read_json(tmp_path / "cohort.json")["complete"] is True
    with pytest.raises(DataError, match="another cohort"):
        generate_partitions(PEOPLE, tmp_path / "cohort", HOW, size=30)
    assert digests(tmp_path / "cohort") == digests(alone)


def test_two_runs_into_one_folder_do_not_mix(alone, tmp_path):
    """The second, in a process of its own, is refused in one sentence and nothing is written; later it may go on."""
    code = "import sys; from spiro_diffusion.commands import main; sys.exit(main())"
    argv = [
        sys.executable,
        "-c",
        code,
        "--age",
        "45",
        "--height",
        "175",
        "--sex",
        "male",
        "-n",
        "40",
        "--steps",
        "2",
        "--out",
        "cohort",
        "--partition",
        "20",
    ]
    with locked(tmp_path / "cohort"):
        refused = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (
        refused.returncode == 2
        and "another run is at work in" in refused.stderr
        and "Traceback" not in refused.stderr
    )
    assert not list((tmp_path / "cohort").iterdir()) and not (tmp_path / "cohort.json").exists()
    assert (
        subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=120).returncode == 0
        and len(digests(tmp_path / "cohort")) == 2
    )
