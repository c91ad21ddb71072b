"""What must not break anything: SIGKILL at random moments, full disks, folders that cannot be written to, two runs at once.

The moments are drawn with fixed seeds. A job runs in a process of its own, forked from one that has everything imported.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion import pipeline
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import locked, shipped_weights
from spiro_diffusion.base.seeds import rng_for
from spiro_diffusion.data import prepare

if not sys.platform.startswith("linux"):
    pytest.skip("SIGKILL, fork and mounts as Linux has them", allow_module_level=True)

PROCESSES = multiprocessing.get_context("forkserver")
MODULES = [
    f"spiro_diffusion.{m}"
    for m in ("data", "latents", "cldm", "vqvae", "physics", "inference", "commands")
]
PROCESSES.set_forkserver_preload(["pytest", "papermill", "nbformat", "matplotlib.pyplot", *MODULES])


# ---- jobs: each writes below `root`, the same files for the same seed


def prepare_simulated(root: Path, seed: int) -> None:
    prepare(None, root / "data" / "processed", n_people=30, seed=seed, chunk=64)


def encode_some(root: Path, seed: int) -> None:
    from spiro_diffusion.latents import encode_dataset
    from spiro_diffusion.vqvae import VQVAE

    flow = rng_for(seed, "flow").exponential(1, (300, 512)).astype(np.float32)
    encode_dataset(VQVAE.from_pretrained(), flow, root / "data" / "processed")


def train_small(root: Path, seed: int) -> None:
    from spiro_diffusion.cldm import settings_for, train_cldm
    from spiro_diffusion.learning.training import TrainConfig

    rng = rng_for(seed, "people")
    people = pd.DataFrame(
        {
            "age": rng.uniform(6, 79, 100),
            "height": rng.uniform(120, 190, 100),
            "gender": rng.integers(1, 3, 100),
            "effort": "A",
            "test": "pre",
            "split": "train",
        }
    )
    settings = settings_for("smoke", seed=seed, device="cpu")
    settings.train = TrainConfig(
        steps=16, batch=8, seed=seed, device="cpu", log_every=2, checkpoint_minutes=0
    )
    train_cldm(
        rng.normal(size=(100, 1, 32)).astype(np.float32),
        people,
        settings,
        root / "checkpoints" / "cldm",
        shipped_weights("vqvae"),
    )


def generate_some(root: Path, seed: int) -> None:
    from spiro_diffusion.apps.generate import main

    who = ["--age", "45", "--height", "175", "--sex", "male", "-n", "32", "--seed", str(seed)]
    if main(
        [
            *who,
            "--overwrite",
            "--out",
            str(root / "cohort.parquet"),
            "--figure",
            str(root / "loops.png"),
        ]
    ):
        raise DataError("the command said what is wrong")


CELLS = {
    "00_data": "from spiro_diffusion.data import prepare\nprepare(None, f'{run_dir}/data/processed', n_people=8, seed=seed)",
    "01_vqvae": "from spiro_diffusion.data import load_prepared\nfrom spiro_diffusion.common import write_json\nflow, people = load_prepared(run_dir)\nwrite_json(f'{run_dir}/figures/sums.json', flow.sum(1))",
}


def run_notebooks(root: Path, seed: int) -> None:
    """Two small notebooks by the pipeline: the first prepares data, the second reads what the first wrote."""
    import nbformat

    nbs = root.parent / "nbs"
    nbs.mkdir(exist_ok=True)
    spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    for name, text in CELLS.items():
        cells = [
            nbformat.v4.new_code_cell(
                "seed: int = 0\nrun_dir: str = '..'", metadata={"tags": ["parameters"]}
            ),
            nbformat.v4.new_code_cell(text),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), nbs / f"{name}.ipynb")
    pipeline.NOTEBOOKS = tuple(CELLS)
    pipeline.run_all(nbs, root, "smoke", progress=False, seed=seed)


# ---- how they are run and compared


def _go(job: Callable[..., Any], args: tuple, told: Any) -> None:
    import torch

    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    told.put("started")
    try:
        job(*args)
        told.put("done")
    except DataError as err:
        told.put(f"refused: {err}")


def start(job: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """A process that has begun with `job(*args)`, and what it tells: "done" or "refused: ...", if it comes so far."""
    told = PROCESSES.Queue()
    process = PROCESSES.Process(target=_go, args=(job, args, told))
    process.start()
    assert told.get(timeout=120) == "started"
    return process, told


def finish(process: Any, told: Any) -> str:
    """What the process said at its end; an exception other than DataError or a signal is a failure."""
    process.join(120)
    assert process.exitcode == 0, "it ended by a signal or an exception that is no DataError"
    return told.get(timeout=10)


def files_of(root: Path) -> dict[str, str]:
    """SHA-256 of each file under `root`, of JSON and XPORT without the time of day; of notebooks only that they are there."""
    out = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".json":
            held = json.loads(data)
            data = json.dumps(
                {k: v for k, v in held.items() if k not in ("seconds", "history", "files")}
                if isinstance(held, dict)
                else held
            ).encode()
        if path.suffix == ".xpt":
            data = re.sub(rb"\d\d[A-Z]{3}\d\d:\d\d:\d\d:\d\d", b"", data)
        out[str(path.relative_to(root))] = (
            "" if path.suffix == ".ipynb" else hashlib.sha256(data).hexdigest()
        )
    return out


@pytest.mark.parametrize(
    ("job", "kills"),
    [
        (prepare_simulated, 6),
        (train_small, 6),
        (generate_some, 5),
        pytest.param(run_notebooks, 3, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_as_an_undisturbed_one(
    tmp_path: Path, job: Callable[..., None], kills: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut ü"
    whole.mkdir(), cut.mkdir()
    process, told = start(job, whole, 5)
    began = time.monotonic()
    assert finish(process, told) == "done"
    spent = time.monotonic() - began
    for share in rng_for(0, "kill", job.__name__).uniform(0.02, 0.95, kills):
        process, _ = start(job, cut, 5)
        time.sleep(share * spent)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert finish(*start(job, cut, 5)) == "done"
    assert files_of(cut) == files_of(whole), "nothing lacks, differs or is left over"


# ---- disks that are full or must not be written to


def own_disk(folder: Path, size: str) -> Callable[[], None]:
    """Mount an empty disk at `folder` that only this process sees; returns a function that makes it read-only."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *args: Any) -> None:
        if getattr(libc, name)(*args):
            raise PermissionError(ctypes.get_errno(), f"{name} is not allowed here")

    user = os.getuid()
    call(
        "unshare", 0x20000 | (0x10000000 if user else 0)
    )  # a mount namespace; a user namespace too unless root
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    call(
        "mount", None, b"/", None, 0x4000 | 0x40000, None
    )  # what is mounted from now on is ours alone
    call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())
    return lambda: call("mount", None, os.fsencode(folder), None, 32 | 1, None)


def on_a_bad_disk(job: Callable[..., None], old: Path, disk: Path, free: int | None) -> None:
    """`job` with another seed on a disk that holds the files of `old` and has `free` bytes left (None: is read-only)."""
    try:
        read_only = own_disk(disk, "20m")
    except OSError:
        return  # neither root nor user namespaces: said as "done", and skipped
    shutil.copytree(old, disk, dirs_exist_ok=True)
    if free is None:
        read_only()
    else:
        state = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_frsize - free))
    before, said = files_of(disk), "nothing"
    try:
        job(disk, 6)
    except DataError as err:
        said = str(err)
    after = files_of(disk)
    assert [k for k in before if k not in after] == [], "something that was there is lost"
    assert [k for k in after if k not in before] == [], "something half-written is left"
    changed = [k for k in before if after[k] != before[k] and not k.startswith("data/simulated")]
    assert changed == [], changed
    assert said != "nothing" and "\n" not in said, said
    raise DataError(said)


BAD_DISKS = [(prepare_simulated, 0), (prepare_simulated, 9_000), (prepare_simulated, None), (encode_some, 30_000), (encode_some, None),
             (train_small, 0), (train_small, 70_000), (train_small, None), (generate_some, 0), (generate_some, 70_000), (generate_some, None), pytest.param(run_notebooks, None, marks=pytest.mark.slow)]  # fmt: skip


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[..., None]], Path]:
    """By job: a folder with what it wrote when all was well."""
    made: dict[str, Path] = {}

    def folder(job: Callable[..., None]) -> Path:
        if job.__name__ not in made:
            made[job.__name__] = tmp_path_factory.mktemp(job.__name__)
            assert finish(*start(job, made[job.__name__], 5)) == "done"
        return made[job.__name__]

    return folder


@pytest.mark.parametrize(
    ("job", "free"),
    BAD_DISKS,
    ids=lambda v: v.__name__ if callable(v) else "read-only" if v is None else f"{v} bytes free",
)
def test_a_full_or_read_only_disk_loses_nothing(
    tmp_path: Path, earlier: Callable, job: Callable[..., None], free: int | None
) -> None:
    said = finish(*start(on_a_bad_disk, job, earlier(job), tmp_path, free))
    if said == "done":
        pytest.skip("this system lets nobody mount a disk of his own")
    assert said.startswith("refused: "), said


def with_quota(job: Callable[..., None], root: Path, size: int) -> None:
    """`job` while no file may be larger than `size` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    job(root, 6)


@pytest.mark.parametrize("job", [prepare_simulated, encode_some, train_small, generate_some])
def test_a_quota_is_said(tmp_path: Path, earlier: Callable, job: Callable[..., None]) -> None:
    shutil.copytree(earlier(job), tmp_path, dirs_exist_ok=True)
    before = files_of(tmp_path)
    assert finish(*start(with_quota, job, tmp_path, 1000)).startswith("refused: ")
    after = files_of(tmp_path)
    assert after.keys() == before.keys() and all(
        after[k] == before[k] for k in after if not k.startswith("data/simulated")
    )


# ---- two at once


@pytest.mark.parametrize(
    ("job", "where"),
    [
        (prepare_simulated, "data/processed"),
        (train_small, "checkpoints/cldm/resume"),
        (run_notebooks, "."),
    ],
)
def test_a_second_run_in_a_folder_is_refused(
    tmp_path: Path, job: Callable[..., None], where: str
) -> None:
    with locked(tmp_path / where):
        said = finish(*start(job, tmp_path, 5))
    assert said.startswith("refused: another run is at work in ") and not [
        p for p in tmp_path.rglob("*") if p.is_file()
    ]


@pytest.mark.parametrize("job", [prepare_simulated, generate_some])
def test_two_that_start_together_take_turns(
    tmp_path: Path, earlier: Callable, job: Callable[..., None]
) -> None:
    both = [start(job, tmp_path, 5) for _ in range(2)]
    said = [finish(*one) for one in both]
    assert "done" in said and all(s == "done" or "another run is at work" in s for s in said)
    assert files_of(tmp_path) == files_of(earlier(job))


def without_network(root: Path) -> None:
    """Everything that computes, while any use of the network ends the process."""
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        os._exit(9)

    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse  # type: ignore[assignment, method-assign]
    for job in (prepare_simulated, encode_some, train_small, generate_some):
        job(root, 5)


def test_nothing_but_spiro_fetch_uses_the_network(tmp_path: Path) -> None:
    assert finish(*start(without_network, tmp_path)) == "done"


def test_folders_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match="data"):
        prepare_simulated(tmp_path, 5)
    with suppress(DataError), locked(tmp_path / "data"):
        raise AssertionError("a file was held as a folder")
