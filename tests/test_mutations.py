"""A thousand damaged files, with fixed seeds: each is refused with one clear sentence, or read to
something of the right shape.

Ways to damage a file: flip bytes, cut it, swap two pieces, splice a piece of it in elsewhere; in
settings, put odd values in. They are read in a process of its own, with a limit on memory and on
time, so that a parser that crashes or hangs is seen and not suffered.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_recordings import WRITTEN

from spiro_diffusion.base.arrays import load_safetensors, open_array, save_safetensors
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import read_json, sha256_of, shipped_weights, write_json
from spiro_diffusion.base.seeds import rng_for
from spiro_diffusion.data import load_prepared
from spiro_diffusion.formats.nhanes import iter_raw
from spiro_diffusion.formats.recognise import read_recordings
from spiro_diffusion.formats.tables import read_table
from spiro_diffusion.formats.ukb import read_ukb
from spiro_diffusion.formats.waveform import read_waveform
from spiro_diffusion.learning.patients import check_patients, read_patients

if not sys.platform.startswith("linux"):
    pytest.skip("limits as Linux has them", allow_module_level=True)

HERE = Path(__file__).parent / "data"
MEMORY = 4 << 30
"""Bytes of address space, beyond what is there at the start, that reading a file may take."""
SECONDS = 20
"""After so many a file counts as one that hangs the reader."""
PROCESSES = multiprocessing.get_context("forkserver")
MODULES = ("data", "cldm", "vqvae", "learning.patients")
PROCESSES.set_forkserver_preload(["pytest", *(f"spiro_diffusion.{m}" for m in MODULES)])


ODD = (
    None,
    True,
    -1,
    0,
    1,
    3.5,
    10**6,
    10**12,
    float("inf"),
    "",
    "x",
    [],
    [1, 2],
    [10**7],
    {},
    {"a": 1},
)


def odd_json(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one to three values replaced by odd ones, or keys renamed or left out."""
    held = json.loads(data)
    for _ in range(rng.integers(1, 4)):
        places = []
        queue = [held]
        while queue:
            here = queue.pop()
            keys = list(here) if isinstance(here, dict) else range(len(here))
            places += [(here, k) for k in keys]
            queue += [here[k] for k in keys if isinstance(here[k], (dict, list))]
        if not places:
            return json.dumps(held).encode()
        here, key = places[rng.integers(len(places))]
        how = rng.integers(6)
        if how == 0 and isinstance(here, dict):
            here[f"{key}2"] = here.pop(key)
        elif how == 1:
            del here[key]
        else:
            here[key] = ODD[rng.integers(len(ODD))]
    return json.dumps(held).encode()


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one to three damages."""
    for _ in range(rng.integers(1, 4)):
        n = max(len(data), 1)
        a, b, c = sorted(int(v) for v in rng.integers(0, n + 1, 3))
        how = rng.integers(5)
        if how == 0:  # flip a few bytes
            changed = bytearray(data)
            for at in rng.integers(0, n, rng.integers(1, 9)):
                if at < len(changed):
                    changed[at] = int(rng.integers(256))
            data = bytes(changed)
        elif how == 1:  # flip bytes of the first 2,000, where headers are
            changed = bytearray(data)
            for at in rng.integers(0, min(n, 2000), rng.integers(1, 5)):
                if at < len(changed):
                    changed[at] ^= 1 << int(rng.integers(8))
            data = bytes(changed)
        elif how == 2:
            data = data[:a]
        elif how == 3:
            data = data[:a] + data[b:c] + data[a:b] + data[c:]
        else:
            data = data[:b] + data[a:c] + data[b:]
    return data


# ---- readers: each takes the path of a damaged file, and asserts what must hold of what it returns


def read_xpt(path: Path) -> None:
    assert read_table(path)["SEQN"].dtype == np.int64


def read_blows(path: Path) -> None:
    for blows in iter_raw(path):
        flow = blows.on_clock()
        assert flow.shape == (len(blows.table), 512)
        assert np.isfinite(flow).all()
        assert (flow >= 0).all()


def read_people_csv(path: Path) -> None:
    table = check_patients(read_patients(path))
    assert len(table)
    assert table["age"].between(5, 95).all()
    assert table["sex"].isin([1, 2]).all()


def read_prepared(path: Path) -> None:
    """The metadata of four signals, damaged."""
    folder = path.parent / "data" / "processed"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "signals_L512.npy", np.ones((4, 512), np.float32))
    shutil.copy(path, folder / "metadata_aligned.csv")
    flow, table = load_prepared(path.parent)
    assert len(flow) == len(table) == 4


def read_lines(path: Path) -> None:
    volume, time = read_ukb(path)
    assert volume.shape[1] == len(time)


def read_any_recording(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recordings = read_recordings(path)
    assert recordings
    for recording in recordings:
        assert recording.volume.shape == recording.time.shape
        seen = slice(None) if recording.observed is None else recording.observed
        assert np.isfinite(recording.volume[seen]).all()


def read_wave(path: Path) -> None:
    volume, time = read_waveform(path)
    assert volume.shape == time.shape


def read_signals(path: Path) -> None:
    assert isinstance(open_array(path, "00_data").sum(), np.generic)


def read_weights(path: Path) -> None:
    assert all(isinstance(v, np.ndarray) for v in load_safetensors(path).values())


def read_settings(path: Path) -> None:
    """A damaged config.json beside good weights; what is taken must make a model that runs."""
    import torch

    from spiro_diffusion.cldm import CLDM

    folder = path.parent / "cldm"
    if not folder.is_dir():
        shutil.copytree(shipped_weights("cldm"), folder)
    shutil.copy(path, folder / "config.json")
    model = CLDM.from_pretrained(folder)
    x = torch.zeros(1, model.settings.channels, model.settings.positions)
    assert model(x, torch.ones(1), torch.zeros(1, len(model.settings.variables))).shape == x.shape


def read_codec_settings(path: Path) -> None:
    from spiro_diffusion.vqvae import VQVAE

    folder = path.parent / "vqvae"
    if not folder.is_dir():
        shutil.copytree(shipped_weights("vqvae"), folder)
    shutil.copy(path, folder / "config.json")
    flow = VQVAE.from_pretrained(folder).decode(np.zeros((1, 32), np.uint16))
    assert flow.shape == (1, 512)


def read_codec(path: Path) -> None:
    """A damaged model.safetensors whose config.json claims it."""
    from spiro_diffusion.vqvae import VQVAE

    folder = path.parent / "vqvae"
    if not folder.is_dir():
        shutil.copytree(shipped_weights("vqvae"), folder)
    shutil.copy(path, folder / "model.safetensors")
    write_json(
        folder / "config.json",
        read_json(folder / "config.json") | {"weights_sha256": sha256_of(path)},
    )
    VQVAE.from_pretrained(folder)


WAVE = b"[Header]\r\nType=VT\r\nFreq=100\r\nFVC=4.0\r\n[Data]\r\n" + b"\r\n".join(
    b"%.3f" % (4 - 4 * 0.98**i) for i in range(300)
)
PEOPLE = "patient,age,height,sex,weight\r\n" + "".join(
    f"p{i},{20 + i},{150 + i},{'male' if i % 2 else 'female'},{50 + i}\r\n" for i in range(30)
)
META = "SEQN,age,height,gender,test,split\n" + "".join(
    f"6216{i},{30 + i},17{i},1,pre,train\n" for i in range(4)
)
UKB = "\n".join(
    f"blow,{k},"
    + ",".join(str(v) for v in [0, 0, *(int(3000 * (1 - 0.97**i)) for i in range(200))])
    for k in (1, 2, 3)
)


def npy() -> bytes:
    import io

    out = io.BytesIO()
    np.save(out, np.ones((3, 512), np.float32))
    return out.getvalue()


def small_weights(folder: Path) -> bytes:
    save_safetensors(
        folder / "w.safetensors",
        {
            "a": np.eye(5, dtype=np.float32),
            "b": np.arange(40),
            "c": np.zeros((2, 3, 4), np.float16),
        },
    )
    return (folder / "w.safetensors").read_bytes()


SOURCES: dict[str, tuple[Callable[[Path], None], str, int, Callable[[Path], bytes]]] = {
    "XPORT people": (
        read_xpt,
        "DEMO_G.xpt",
        150,
        lambda _: (HERE / "DEMO_G_simulated.xpt").read_bytes(),
    ),
    "XPORT blows": (read_blows, "SPXRAW_G.xpt", 120, lambda folder: as_xport(folder)),
    "SAS7BDAT blows": (
        read_blows,
        "SPXRAW_G.sas7bdat",
        180,
        lambda _: (HERE / "SPXRAW_G_simulated.sas7bdat").read_bytes(),
    ),
    "CSV of patients": (read_people_csv, "people.csv", 120, lambda _: PEOPLE.encode()),
    "CSV of metadata": (read_prepared, "meta.csv", 60, lambda _: META.encode()),
    "UK Biobank lines": (read_lines, "field3066.csv", 40, lambda _: UKB.encode()),
    "ATS waveform": (read_wave, "a.wf", 40, lambda _: WAVE),
    "table of curves": (
        read_any_recording,
        "export",
        60,
        lambda _: WRITTEN["semicolons"].encode(),
    ),
    "table of loops": (read_any_recording, "export", 60, lambda _: WRITTEN["loops"].encode()),
    "UK Biobank table": (
        read_any_recording,
        "export",
        60,
        lambda _: WRITTEN["UK Biobank tabs"].encode(),
    ),
    "ndd XML": (read_any_recording, "export", 80, lambda _: WRITTEN["ndd"].encode("utf-16")),
    "FHIR": (read_any_recording, "export", 80, lambda _: WRITTEN["FHIR"].encode()),
    "odd FHIR": (read_any_recording, "export", 200, lambda _: WRITTEN["FHIR"].encode()),
    "NPY": (read_signals, "signals.npy", 40, lambda _: npy()),
    "safetensors": (read_weights, "model.safetensors", 120, small_weights),
    "weights of a codec": (
        read_codec,
        "w.safetensors",
        10,
        lambda _: (shipped_weights("vqvae") / "model.safetensors").read_bytes(),
    ),
    "JSON settings": (
        read_settings,
        "config.json",
        40,
        lambda _: (shipped_weights("cldm") / "config.json").read_bytes(),
    ),
    "odd settings": (
        read_settings,
        "config.json",
        100,
        lambda _: (shipped_weights("cldm") / "config.json").read_bytes(),
    ),
    "odd settings of a codec": (
        read_codec_settings,
        "config.json",
        60,
        lambda _: (shipped_weights("vqvae") / "config.json").read_bytes(),
    ),
}


def as_xport(folder: Path) -> bytes:
    import pyreadstat

    frame, _ = pyreadstat.read_sas7bdat(str(HERE / "SPXRAW_G_simulated.sas7bdat"))
    pyreadstat.write_xport(frame.head(12), str(folder / "x.xpt"), file_format_version=8)
    return (folder / "x.xpt").read_bytes()


def _read_all(name: str, folder: Path, first: int, told: Any) -> None:
    read, file, count, make = SOURCES[name]
    data = make(folder)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for k in range(first, count):
        (folder / file).write_bytes(
            (odd_json if name.startswith("odd") else mutated)(data, rng_for(k, "mutation", name))
        )
        told.put((k, ""))
        signal.alarm(SECONDS)
        try:
            read(folder / file)
            said = "read"
        except ValueError as err:
            said = (
                f"refused: {err}"
                if "\n" not in str(err).strip()
                else f"FAULT: several lines: {err!r}"
            )
            if type(err).__name__ not in ("DataError", "ValueError"):
                said = f"FAULT: {type(err).__name__}: {err}"
        except BaseException as err:  # what a user would see as a traceback
            said = f"FAULT: {type(err).__name__}: {err}"
        signal.alarm(0)
        told.put((k, said))
    told.put((count, "end"))


def outcomes(name: str, folder: Path) -> list[str]:
    """What became of each damaged file of a kind.

    A process that dies is begun again after the file that killed it.
    """
    out = []
    first = 0
    count = SOURCES[name][2]
    while first < count:
        ours, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_tell, args=(name, folder, first, theirs))
        process.start()
        theirs.close()
        at = first
        while True:
            try:
                at, said = ours.recv()
            except EOFError:
                process.join()
                out.append(f"FAULT: file {at} ended the process with {process.exitcode}")
                first = at + 1
                break
            if said == "end":
                process.join()
                return out
            if said:
                out.append(said)
    return out


class _Told:
    """Sends at once, so that nothing is lost when the process dies."""

    def __init__(self, pipe: Any):
        self.put = pipe.send


def _tell(name: str, folder: Path, first: int, pipe: Any) -> None:
    _read_all(name, folder, first, _Told(pipe))


@pytest.mark.parametrize("name", SOURCES)
def test_damaged_files_are_refused_or_read(tmp_path: Path, name: str) -> None:
    said = outcomes(name, tmp_path)
    assert len(said) == SOURCES[name][2]
    assert not [s for s in said if s.startswith("FAULT")], [
        s for s in said if s.startswith("FAULT")
    ][:5]
    assert any(s.startswith("refused") for s in said)


@pytest.mark.parametrize("name", SOURCES)
def test_undamaged_files_are_read(tmp_path: Path, name: str) -> None:
    read, file, _, make = SOURCES[name]
    data = make(tmp_path)
    (tmp_path / file).write_bytes(data)
    read(tmp_path / file)


@pytest.mark.parametrize("shape", [[10**12], [2**40, 2**40], [-1, 4], [4, 4, 10**9], ["x"], []])
def test_absurd_shapes_in_weights(tmp_path: Path, shape: list) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 64]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(DataError, match="w.safetensors is not a whole safetensors file"):
        load_safetensors(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((2**62).to_bytes(8, "little") + header)
    with pytest.raises(DataError):
        load_safetensors(tmp_path / "w.safetensors")


def test_unknown_settings_are_named(tmp_path: Path) -> None:
    from spiro_diffusion.cldm import CLDM

    shutil.copytree(shipped_weights("cldm"), tmp_path / "cldm")
    write_json(
        tmp_path / "cldm" / "config.json",
        read_json(tmp_path / "cldm" / "config.json") | {"colour": "red"},
    )
    with pytest.raises(DataError, match="colour"):
        CLDM.from_pretrained(tmp_path / "cldm")
