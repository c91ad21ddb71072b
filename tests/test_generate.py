"""The command spiro_generate: bad input, and the same cohort whichever way it is asked for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion.common import read_json

MAN = ["--age", "45", "--height", "175", "--sex", "male"]


def command(*argv: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    call = [sys.executable, "-c", "import sys; from spiro_diffusion.inference import main; sys.exit(main())"]
    return subprocess.run([*call, *map(str, argv)], capture_output=True, text=True, cwd=cwd, timeout=120)


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
}


@pytest.mark.parametrize("argv, word", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, argv: list[str], word: str) -> None:
    files = {"empty.csv": "", "header.csv": "age,height,sex\n", "column.csv": "age,sex\n45,male\n", "hole.csv": "age,height,sex\n45,,male\n", "there.parquet": "mine", "record.json": "mine"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = command(*argv, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert word in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == files, "nothing written, nothing changed"


def test_checkpoints_that_are_none_are_said(tmp_path: Path) -> None:
    for name in ("vqvae", "cldm"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (tmp_path / "checkpoints" / name / file).write_bytes(b"{}")
    done = command(*MAN, "--run-dir", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_help_needs_no_torch() -> None:
    code = "import sys; from spiro_diffusion.inference import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("False")


def test_same_seed_same_cohort_whatever_the_batch_and_the_door(tmp_path: Path) -> None:
    from spiro_diffusion.inference import generate

    people = pd.DataFrame({"age": [45, 12, 70], "height": [175.0, 150, 160], "sex": ["male", "female", 2]})
    people.to_csv(tmp_path / "people.csv", index=False)
    done = command("--patients", "people.csv", "--draws", 7, "--seed", 3, "--out", "cohort.parquet", "--figure", "loops.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "cohort.parquet")
    info = read_json(tmp_path / "cohort.json")
    assert len(table) == 21 and info["synthetic"] is True and set(info["weights_sha256"]) == {"vqvae", "cldm"}
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
