"""A cohort in partitions on real processes: a killed worker, a killed run, two runs at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import distributed
import numpy as np
import pandas as pd
import pytest
import torch

from spiro_diffusion.apps.generate import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import locked, read_json, record_beside
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
CODE = "import sys; from spiro_diffusion.apps.generate import main; sys.exit(main())"
COMMAND = [sys.executable, "-c", CODE, "--out", "cohort", "--partition", "20"]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each partition, by its name."""
    paths = sorted(folder.glob("part-*.parquet"))
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


def wait_for(partitions: int, folder: Path, writer: subprocess.Popen | None = None) -> None:
    """Until so many are there; an error if the process that writes them has ended before."""
    while len(list(folder.glob("part-*.parquet"))) < partitions:
        assert writer is None or writer.poll() is None, "it ended too soon"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The cohort as one process writes it."""
    return generate_partitions(PEOPLE, tmp_path_factory.mktemp("alone") / "cohort", HOW, size=20)


def test_partitions_are_the_cohort_in_one_piece(alone):
    whole = generate(PEOPLE, draws=20, seed=5, steps=4)
    parts = read_cohort(alone)
    assert len(digests(alone)) == 12
    np.testing.assert_allclose(parts.flow, whole.flow, atol=1e-4)
    pd.testing.assert_frame_equal(parts.table, whole.table, atol=1e-4)
    assert len(pd.read_parquet(alone)) == 240, "one table for whatever reads Parquet"


def test_a_worker_killed_in_the_middle_changes_nothing(alone, tmp_path):
    folder = tmp_path / "cohort"
    killed = threading.Event()

    def kill(worker: int) -> None:
        wait_for(1, folder)
        os.kill(worker, signal.SIGKILL)
        killed.set()

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        with distributed.Client(cluster) as client:
            victim = next(iter(client.run(os.getpid).values()))
        threading.Thread(target=kill, args=(victim,), daemon=True).start()
        generate_partitions(PEOPLE, folder, HOW, size=20, scheduler=cluster.scheduler_address)
    assert killed.is_set()
    assert digests(folder) == digests(alone)
    assert read_json(tmp_path / "cohort.json") == read_json(record_beside(alone))
    assert not list(folder.glob(".*"))


def test_a_worker_s_threads_leave_the_process_alone(alone, tmp_path, monkeypatch):
    """Three at once in this process: the same curves, and torch's threads are nobody's to set."""
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    folder = tmp_path / "cohort"
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=3, dashboard_address=None
    ) as client:
        generate_partitions(PEOPLE, folder, HOW, size=20, scheduler=client)
    assert not calls
    np.testing.assert_allclose(read_cohort(folder).flow, read_cohort(alone).flow, atol=1e-4)


def test_a_killed_run_goes_on_with_what_is_missing(alone, tmp_path):
    folder = tmp_path / "cohort"
    PEOPLE.to_csv(tmp_path / "people.csv", index=False)
    argv = [*COMMAND, "--patients", "people.csv", "--draws", "20", "--seed", "5", "--steps", "4"]
    first = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.DEVNULL)
    wait_for(3, folder, first)
    first.kill()
    first.wait()
    there = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}
    assert 3 <= len(there) < 12
    assert read_json(tmp_path / "cohort.json")["complete"] is False

    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "240 synthetic curves of 12 patients" in done.stdout
    assert digests(folder) == digests(alone)
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert not list(folder.glob(".*"))
    assert read_json(tmp_path / "cohort.json")["complete"] is True

    with pytest.raises(DataError, match="another cohort"):
        generate_partitions(PEOPLE, folder, HOW, size=30)
    assert digests(folder) == digests(alone)


def test_two_runs_into_one_folder_do_not_mix(tmp_path, monkeypatch):
    """The second, in a process of its own, is refused in one sentence and nothing is written."""
    folder = tmp_path / "cohort"
    argv = ["--age", "45", "--height", "175", "--sex", "male", "-n", "40", "--steps", "2"]
    monkeypatch.chdir(tmp_path)
    with locked(folder):
        refused = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, timeout=120)
        assert not digests(folder)
    assert refused.returncode == 2
    assert "another run is at work in" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(folder.iterdir())
    assert not (tmp_path / "cohort.json").exists()
    assert main([*COMMAND[3:], *argv]) == 0
    assert len(digests(folder)) == 2
