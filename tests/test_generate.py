"""The command spiro_generate: bad input, and the same cohort whichever way it is asked for."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.apps.generate import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import read_json, shipped_weights
from spiro_diffusion.data import prepare
from spiro_diffusion.generation.cohort import read_cohort
from spiro_diffusion.generation.drawing import load_models
from spiro_diffusion.inference import generate
from spiro_diffusion.spirometry.indices import indices_on_clock

MAN = ["--age", "45", "--height", "175", "--sex", "male"]


def command(*argv: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    call = [
        sys.executable,
        "-c",
        "import sys; from spiro_diffusion.commands import main; sys.exit(main())",
    ]
    return subprocess.run(
        [*call, *map(str, argv)], capture_output=True, text=True, cwd=cwd, timeout=120
    )


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


@pytest.mark.parametrize("argv, word", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_status_2(
    tmp_path: Path, monkeypatch, capfd, argv: list[str], word: str
) -> None:
    files = {
        "empty.csv": "",
        "header.csv": "age,height,sex\n",
        "column.csv": "age,sex\n45,male\n",
        "hole.csv": "age,height,sex\n45,,male\n",
        "there.parquet": "mine",
        "record.json": "mine",
    }
    files |= {
        "heavy.csv": "age,height,sex,weight\n45,175,male,heavy\n",
        "twice.csv": "patient,age,height,sex\n7,45,175,male\n7,46,175,male\n",
        "full/mine.txt": "mine",
    }
    (tmp_path / "full").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert status_of(argv) == 2
    said = capfd.readouterr()
    assert said.out == "" and word in said.err and said.err.count("\n") == 1, said.err
    assert {
        str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()
    } == files, "nothing written, nothing changed"


def test_checkpoints_that_are_none_are_said(tmp_path: Path) -> None:
    shipped, root = shipped_weights(), tmp_path / "checkpoints"
    whole = {
        f: (shipped / f).read_bytes()
        for f in (
            "vqvae/config.json",
            "vqvae/model.safetensors",
            "cldm/config.json",
            "cldm/model.safetensors",
        )
    }
    faults = {
        "cldm/model.safetensors": whole["cldm/model.safetensors"][:5000],
        "vqvae/model.safetensors": b"<html>",
        "cldm/config.json": b'{"layers": 3}',
        "vqvae/config.json": b"\x89PNG",
    }
    for name, content in faults.items():
        for file, good in whole.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content if file == name else good)
        with pytest.raises(DataError) as said:
            load_models(tmp_path)
        assert Path(name).parent.name in str(said.value) and "\n" not in str(said.value), str(
            said.value
        )
    done = command(*MAN, "--run-dir", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "out, kind",
    [
        ("c.parquet", "parquet"),
        ("c.csv", "csv"),
        ("c.npz", "npz"),
        ("c", "nhanes"),
        ("parts", None),
    ],
)
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch, capsys, out: str, kind: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, limit = (
        [
            *MAN,
            "-n",
            "60",
            "--steps",
            "1",
            "--out",
            out,
            *(["--format", kind] if kind else ["--partition", "60"]),
        ],
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, limit[1])
    )  # the system refuses to let a file grow, as on a full disk
    try:
        status = status_of(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capsys.readouterr().err
    assert (
        status == 2
        and said.splitlines()[-1].startswith("spiro_generate:")
        and "could not be written" in said
    ), said
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == (
        ["parts.json"] if kind is None else []
    )


def test_every_format_holds_the_same_curves(tmp_path: Path) -> None:
    people = pd.DataFrame(
        {
            "patient": ["ann", "bob"],
            "age": [45.5, 12],
            "height": [165, 150],
            "sex": ["female", "male"],
            "test": ["pre", "post"],
        }
    )
    cohort = generate(people, draws=3, steps=2)
    (
        cohort.save(tmp_path / "c.npz"),
        cohort.save(tmp_path / "d.csv"),
        cohort.save(tmp_path / "nhanes", file_format="nhanes"),
    )
    with np.load(tmp_path / "c.npz", allow_pickle=False) as arrays:
        assert (
            np.array_equal(arrays["flow"], cohort.flow)
            and arrays["patient"].tolist() == cohort.table["patient"].tolist()
        )
    volume = pd.read_csv(tmp_path / "d.csv").groupby(["patient", "draw"])["volume_L"].max()
    assert np.allclose(volume, cohort.table["fvc"], atol=1e-4)
    report = prepare(tmp_path / "nhanes", tmp_path / "processed")
    flow, who = (
        np.load(tmp_path / "processed/signals_L512.npy"),
        pd.read_csv(tmp_path / "processed/metadata_aligned.csv"),
    )
    assert (
        report["simulated"]
        and report["blows_kept"] == 6
        and who["age"].tolist() == cohort.table["age"].tolist()
        and who["test"].tolist() == ["pre"] * 3 + ["post"] * 3
    )
    gap = (
        (indices_on_clock(flow)[["fvc", "fev1", "pef"]] - cohort.table[["fvc", "fev1", "pef"]])
        .abs()
        .max()
    )
    assert gap["fvc"] < 0.002 and gap["fev1"] < 0.01 and gap["pef"] < 0.15, gap


def test_each_patient_has_the_z_scores_asked_for_and_is_as_if_alone(tmp_path: Path) -> None:
    nobody = np.nan
    people = pd.DataFrame(
        {
            "patient": list("abcd"),
            "age": [45, 60, 30, 50],
            "height": [175, 170, 165, 180],
            "sex": [1, 2, 2, 1],
            "fvc_z": [-2, nobody, -1, nobody],
            "fev1_z": [nobody, -2, -1.5, nobody],
            "fev1_fvc_z": [nobody, nobody, nobody, -3],
        }
    )
    people.to_csv(tmp_path / "people.csv", index=False)
    assert (
        main(
            [
                "--patients",
                str(tmp_path / "people.csv"),
                "-n",
                "2",
                "--out",
                str(tmp_path / "c.parquet"),
            ]
        )
        == 0
    )
    cohort = read_cohort(tmp_path / "c.parquet")
    for name in ("fvc_z", "fev1_z", "fev1_fvc_z"):
        assert (cohort.table[name] - cohort.table[f"{name}_asked"]).abs().max() < 0.05, name
    for k in range(4):
        alone = people[k : k + 1].dropna(axis=1)
        assert np.array_equal(generate(alone, draws=2).flow, cohort.flow[2 * k : 2 * k + 2]), k
        assert not np.array_equal(
            generate(alone, draws=2, exact=False).flow, cohort.flow[2 * k : 2 * k + 2]
        )


def test_help_needs_no_torch() -> None:
    code = "import sys, spiro_diffusion.inference; from spiro_diffusion.commands import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("False")


def test_same_seed_same_cohort_whatever_the_batch_and_the_door(tmp_path: Path) -> None:
    people = pd.DataFrame(
        {"age": [45, 12, 70], "height": [175.0, 150, 160], "sex": ["male", "female", 2]}
    )
    people.to_csv(tmp_path / "people.csv", index=False)
    done = command(
        "--patients",
        "people.csv",
        "--draws",
        7,
        "--seed",
        3,
        "--out",
        "cohort.parquet",
        "--figure",
        "loops.png",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "cohort.parquet")
    info = read_json(tmp_path / "cohort.json")
    assert (
        len(table) == 21
        and info["synthetic"] is True
        and set(info["weights_sha256"]) == {"vqvae", "cldm"}
    )
    assert (tmp_path / "loops.png").stat().st_size > 10_000
    flow = np.stack(table["flow"])
    assert flow.shape == (21, 512) and flow.dtype == np.float32 and (flow >= 0).all()
    for batch in (1, 4, 21):
        cohort = generate(people, draws=7, seed=3, batch=batch)
        assert np.array_equal(cohort.flow, flow), f"batch {batch}"
        pd.testing.assert_frame_equal(cohort.table, table.drop(columns="flow"))
    assert not np.allclose(generate(people, draws=7, seed=4).flow, flow)
    again = command("--patients", "people.csv", "--out", "cohort.parquet", cwd=tmp_path)
    assert again.returncode == 2 and "exists" in again.stderr
