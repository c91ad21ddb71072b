"""What must not break anything: SIGKILL at random moments, full disks, folders that cannot be
written to, two runs at once.

The moments are drawn with fixed seeds. A job runs in a process of its own, forked from one that has
everything imported.
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
from contextlib import ExitStack
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.apps import run
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import locked, shipped_weights
from spiro_diffusion.base.seeds import rng_for
from spiro_diffusion.data import prepare

if not sys.platform.startswith("linux"):
    pytest.skip("SIGKILL, fork and mounts as Linux has them", allow_module_level=True)

PROCESSES = multiprocessing.get_context("forkserver")
MODULES = (
    "data",
    "latents",
    "cldm",
    "vqvae",
    "generation.cohort",
    "generation.steering",
    "inference",
    "apps.generate",
    "apps.run",
)
# the last four are imported on first use, by an optimiser, a writer and two readers of files
LIBRARIES = (
    "pytest",
    "papermill",
    "nbformat",
    "matplotlib.pyplot",
    "torch._dynamo",
    "pyspiro",
    "pyarrow.parquet",
    "narwhals.stable.v2",
)
PROCESSES.set_forkserver_preload([*LIBRARIES, *(f"spiro_diffusion.{m}" for m in MODULES)])
HANGS = 600
"""Seconds after which a process that says nothing is taken to hang."""


# ---- jobs: each writes below `root`, the same files for the same seed


def prepare_simulated(root: Path, seed: int) -> None:
    prepare(None, root / "data" / "processed", n_people=6, seed=seed, chunk=16)


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
        steps=8, batch=8, seed=seed, device="cpu", log_every=2, checkpoint_minutes=0
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


JOBS = (prepare_simulated, encode_some, train_small, generate_some)


FIRST_CELL = """
from spiro_diffusion.data import prepare
prepare(None, f"{run_dir}/data/processed", n_people=3, seed=seed)
"""
SECOND_CELL = """
from spiro_diffusion.base.files import write_json
from spiro_diffusion.data import load_prepared
flow, people = load_prepared(run_dir)
write_json(f"{run_dir}/checkpoints/sums.json", flow.sum(1))
"""
CELLS = {"00_data": FIRST_CELL, "01_vqvae": SECOND_CELL}


def run_notebooks(root: Path, seed: int) -> None:
    """Two small notebooks by `run_all`: the second reads what the first wrote."""
    import nbformat

    nbs = root.parent / "nbs"
    nbs.mkdir(exist_ok=True)
    spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    for name, text in CELLS.items():
        cells = [
            nbformat.v4.new_code_cell(
                "seed: int = 0\nrun_dir: str = '..'\nrun_name: str = 'default'",
                metadata={"tags": ["parameters"]},
            ),
            nbformat.v4.new_code_cell(text),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), nbs / f"{name}.ipynb")
    run.NOTEBOOKS = tuple(CELLS)
    run.run_all(nbs, root, "smoke", progress=False, seed=seed)


# ---- how they are run and compared


def _go(job: Callable[..., Any], args: tuple, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pipe.send("started")
    try:
        job(*args)
        pipe.send("done")
    except DataError as err:
        pipe.send(f"refused: {err}")


def start(job: Callable[..., Any], *args: Any) -> tuple[BaseProcess, Connection]:
    """A process that has begun with `job(*args)`, and what it tells.

    At its end, if it comes so far, it says "done" or "refused: ...".
    """
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_go, args=(job, args, theirs))
    process.start()
    theirs.close()  # so that a process that ends without a word is noticed
    assert ours.recv() == "started"
    return process, ours


def finish(process: BaseProcess, told: Connection) -> str:
    """What the process said at its end; a signal, or an exception but DataError, is a failure."""
    process.join(HANGS)
    assert process.exitcode is not None, "it hangs"
    assert process.exitcode == 0, "it ended by a signal or an exception that is no DataError"
    return told.recv()


def content_of(path: Path) -> bytes:
    """What a file holds, without what differs from run to run: seconds, losses and times of day.

    Of notebooks nothing: only that they are there is compared.
    """
    if path.suffix == ".ipynb":
        return b""
    data = path.read_bytes()
    if path.suffix == ".xpt":
        return re.sub(rb"\d\d[A-Z]{3}\d\d:\d\d:\d\d:\d\d", b"", data)
    if path.suffix == ".json":
        held = json.loads(data)
        if isinstance(held, dict):
            held = {
                k: v
                for k, v in held.items()
                if k not in ("seconds", "seconds_on", "history", "files")
            }
        return json.dumps(held).encode()
    return data


def files_of(root: Path) -> dict[str, str]:
    """SHA-256 of the content of each file under `root`, by its path there."""
    out = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(content_of(path)).hexdigest()
            out[str(path.relative_to(root))] = digest
    return out


def without_network(job: Callable[..., None], root: Path, seed: int) -> None:
    """`job`, while any use of the network ends the process."""
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        os._exit(9)

    for owner, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "getaddrinfo"),
    ):
        setattr(owner, name, refuse)
    job(root, seed)


class Earlier(NamedTuple):
    """What a job wrote when all was well, and the seconds that it took."""

    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[..., None]], Earlier]:
    """By job: what it wrote with seed 5, undisturbed and, but for notebooks, without a network."""

    @cache
    def of(job: Callable[..., None]) -> Earlier:
        folder = tmp_path_factory.mktemp(job.__name__) / "root"
        folder.mkdir()
        started = start(without_network, job, folder, 5) if job in JOBS else start(job, folder, 5)
        began = time.monotonic()
        assert finish(*started) == "done"
        return Earlier(folder, time.monotonic() - began)

    return of


@pytest.mark.parametrize("job", JOBS)
def test_nothing_but_spiro_fetch_uses_the_network(earlier: Callable, job: Callable) -> None:
    assert files_of(earlier(job).folder)


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
    tmp_path: Path, earlier: Callable, job: Callable[..., None], kills: int
) -> None:
    whole = earlier(job)
    cut = tmp_path / "cut ü"
    cut.mkdir()
    for share in rng_for(0, "kill", job.__name__).uniform(0.02, 0.95, kills):
        process, _ = start(job, cut, 5)
        time.sleep(share * whole.seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert finish(*start(job, cut, 5)) == "done"
    assert files_of(cut) == files_of(whole.folder), "nothing lacks, differs or is left over"


# ---- disks that are full or must not be written to


def own_disk(folder: Path, size: str) -> Callable[[], None]:
    """Mount an empty disk at `folder` that only this process sees.

    Returns a function that makes it read-only. Raises PermissionError where that is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *args: Any) -> None:
        if getattr(libc, name)(*args):
            raise PermissionError(ctypes.get_errno(), f"{name} is not allowed here")

    own_mounts = 0x20000  # CLONE_NEWNS
    own_users = 0x10000000  # CLONE_NEWUSER
    recursive = 0x4000  # MS_REC
    private = 0x40000  # MS_PRIVATE
    again = 32  # MS_REMOUNT
    read_only = 1  # MS_RDONLY
    user = os.getuid()
    call("unshare", own_mounts | (own_users if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    call("mount", None, b"/", None, recursive | private, None)
    call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())
    return lambda: call("mount", None, os.fsencode(folder), None, again | read_only, None)


def mount_something(folder: Path) -> None:
    """Raises DataError where nobody may mount a disk of his own."""
    try:
        own_disk(folder, "1m")
    except OSError as err:
        raise DataError(f"needs root, or user namespaces, to mount a small disk: {err}") from err


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips the tests that mount disks, and says why, where that is not allowed."""
    said = finish(*start(mount_something, tmp_path_factory.mktemp("disk")))
    if said != "done":
        pytest.skip(said.removeprefix("refused: "))


def fill(disk: Path, free: int) -> None:
    """Leave `free` bytes on a disk."""
    state = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_frsize - free))


def on_a_bad_disk(job: Callable[..., None], old: Path, disk: Path, free: int | None) -> None:
    """`job` with another seed on a disk that holds the files of `old`.

    `free` bytes are left on it (None: it is read-only). Raises the DataError that ends the job.
    """
    make_read_only = own_disk(disk, "20m")
    shutil.copytree(old, disk, dirs_exist_ok=True)
    if free is None:
        make_read_only()
    else:
        fill(disk, free)
    before = files_of(disk)
    with pytest.raises(DataError) as caught:
        job(disk, 6)
    after = files_of(disk)
    assert [k for k in before if k not in after] == [], "something that was there is lost"
    assert [k for k in after if k not in before] == [], "something half-written is left"
    changed = [k for k in before if after[k] != before[k] and not k.startswith("data/simulated")]
    assert changed == [], changed
    assert "\n" not in str(caught.value), caught.value
    raise caught.value


BAD_DISKS = [
    (prepare_simulated, 0),
    (prepare_simulated, 9_000),
    (prepare_simulated, None),
    (encode_some, 30_000),
    (encode_some, None),
    (train_small, 0),
    (train_small, 70_000),
    (train_small, None),
    (generate_some, 0),
    (generate_some, 70_000),
    (generate_some, None),
    pytest.param(run_notebooks, None, marks=pytest.mark.slow),
]


def id_of(value: Any) -> str:
    """How a job or the state of a disk is called in the name of a test."""
    if callable(value):
        return value.__name__
    return "read-only" if value is None else f"{value} bytes free"


@pytest.mark.usefixtures("disks")
@pytest.mark.parametrize(("job", "free"), BAD_DISKS, ids=id_of)
def test_a_full_or_read_only_disk_loses_nothing(
    tmp_path: Path, earlier: Callable, job: Callable[..., None], free: int | None
) -> None:
    said = finish(*start(on_a_bad_disk, job, earlier(job).folder, tmp_path, free))
    assert said.startswith("refused: "), said


def with_quota(job: Callable[..., None], root: Path, size: int) -> None:
    """`job` while no file may be larger than `size` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    job(root, 6)


@pytest.mark.parametrize("job", JOBS)
def test_a_quota_is_said(tmp_path: Path, earlier: Callable, job: Callable[..., None]) -> None:
    shutil.copytree(earlier(job).folder, tmp_path, dirs_exist_ok=True)
    before = files_of(tmp_path)
    assert finish(*start(with_quota, job, tmp_path, 1000)).startswith("refused: ")
    after = files_of(tmp_path)
    assert after.keys() == before.keys()
    changed = [k for k in before if after[k] != before[k] and not k.startswith("data/simulated")]
    assert changed == []


# ---- two at once


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    held = {
        prepare_simulated: "data/processed",
        train_small: "checkpoints/cldm/resume",
        run_notebooks: ".",
    }
    roots = {job: tmp_path / job.__name__ / "root" for job in held}
    with ExitStack() as stack:
        for job, folder in held.items():
            stack.enter_context(locked(roots[job] / folder))
        started = [start(job, root, 5) for job, root in roots.items()]
        said = [finish(*one) for one in started]
    assert all(s.startswith("refused: another run is at work in ") for s in said), said
    assert [p for root in roots.values() for p in root.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("job", [prepare_simulated, generate_some])
def test_two_that_start_together_take_turns(
    tmp_path: Path, earlier: Callable, job: Callable[..., None]
) -> None:
    both = [start(job, tmp_path, 5) for _ in range(2)]
    said = [finish(*one) for one in both]
    assert "done" in said
    assert all(s == "done" or "another run is at work" in s for s in said)
    assert files_of(tmp_path) == files_of(earlier(job).folder)


def test_folders_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match="data"):
        prepare_simulated(tmp_path, 5)
    with pytest.raises(DataError, match="data cannot be written to"), locked(tmp_path / "data"):
        raise AssertionError("a file was held as a folder")
