"""The benchmarks' page is made from their results."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spiro_diffusion.base.files import write_json

BENCH = Path(__file__).parent.parent / "bench"


def test_page_is_that_of_the_results():
    page = runpy.run_path(str(BENCH / "table.py"))["page"]()
    assert page == (BENCH / "README.md").read_text(encoding="utf-8"), "run: python bench/table.py"
    assert all(
        f"## {p.stem.replace('_', ' ')}\n" in page for p in (BENCH / "results").glob("*.json")
    )


def numbers(value: Any) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return numbers(list(value.values()))
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def test_gpu_benchmark_at_toy_size(tmp_path):
    """The whole script, on the CPU: every part measured, but for that which needs a GPU."""
    out = tmp_path / "gpu.json"
    call = [sys.executable, str(BENCH / "gpu.py"), "--device", "cpu", "--toy", "--out", str(out)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    failed = [row for row in found["sampling"] if "failed" in row]
    assert [row["what"] for row in failed] == ["CUDA graph"]
    assert "needs a CUDA device" in failed[0]["failed"]
    assert all("could not be replayed" in row["failed"] for row in found["replayed"])
    assert json.dumps(found).count('"failed"') == 1 + len(found["replayed"])
    assert all(math.isfinite(number) for number in numbers(found))

    alike = [row for row in found["sampling"] if "failed" not in row] + [found["same_cohort"]]
    assert len(alike) == 4
    for row in alike:
        assert row["difference_L_per_s"] == row["difference_fvc_mL"] == 0, row
    assert found["same_cohort"]["others"] == 0
    assert all(row["curves_per_s"] > 0 for row in found["generate"])
    assert {row["network"] for row in found["training"]} == {"cLDM", "codec"}
    assert all(row["steps_per_s"] > 0 and row["steps_per_s_alone"] > 0 for row in found["training"])
    assert all(seconds > 0 for seconds in found["stages"]["seconds"].values())
    assert set(found["weights_sha256"]) == {"vqvae", "cldm"}
    assert len(found["goals"]) == 3

    page = runpy.run_path(str(BENCH / "table.py"))["page"]
    assert "CPU, " in page(tmp_path)
    assert "Toy sizes" in page(tmp_path)
    assert "Not measured: it needs a GPU" in page(tmp_path / "nothing")


def test_gpu_benchmark_without_a_gpu_or_time(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    gpu = runpy.run_path(str(BENCH / "gpu.py"))
    row = gpu["Recorder"](minutes=-1).part({"what": "x"}, dict)
    assert row == {"what": "x", "failed": "no time was left"}
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="give --toy"):
        gpu["main"]()


def test_growth_is_fitted():
    growth = runpy.run_path(str(BENCH / "cohort_growth.py"))
    sizes = [1000, 10_000, 100_000]
    rows = [
        {"curves": n, "cpu_seconds": 2 + n / 400, "cpu_ms_per_curve": 2000 / n + 2.5, "peak_MB": 4}
        for n in sizes
    ]
    fit = growth["fit_of"](rows)
    assert math.isclose(fit["start_s"], 2)
    assert math.isclose(fit["ms_per_curve"], 2.5)
    assert fit["misfit"] < 1e-9
    rows[2]["cpu_seconds"] *= 1.5
    assert growth["fit_of"](rows)["misfit"] > 0.1
    assert growth["fit_of"](rows[:1]) is None
    assert math.isclose(growth["largest_over_compared"](rows)["cpu_ms_per_curve"], 2.52 / 2.7)
    assert growth["largest_over_compared"](rows[:2]) is None


def test_growth_benchmark_at_toy_size(tmp_path):
    """One process, and one and two Dask workers of one thread each."""
    out = tmp_path / "cohort_growth.json"
    call = [sys.executable, str(BENCH / "cohort_growth.py"), "--out", str(out), "--steps", "2"]
    call += ["--largest", "40", "--partition", "20"]
    call += ["--workers", "2", "--shared", "80", "--shared-partition", "20"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = json.loads(out.read_text(encoding="utf-8"))["steps_2"]
    assert [row["curves"] for row in run["sizes"]] == [40]
    assert [row["workers"] for row in run["workers"]["rows"]] == [1, 2]
    assert all(row["torch_threads"] == 1 for row in run["workers"]["rows"])
    assert all(row["partitions"] == 4 for row in run["workers"]["rows"])
    assert run["workers"]["times_one_worker"] > 0
    assert "times one worker" in runpy.run_path(str(BENCH / "table.py"))["page"](tmp_path)


def test_training_bench_compares_with_the_usual_way_alone():
    bench = runpy.run_path(str(BENCH / "training.py"))
    times = {"alone": [100.0, 120.0, 500.0], "core taken": [240.0]}
    found = dict.fromkeys(bench["WAYS"], times)
    rows = bench["rows_of"]("codec", found)
    assert [row["core_taken_over_usual"] for row in rows] == [2.0] * len(bench["WAYS"])
    section = runpy.run_path(str(BENCH / "table.py"))["training"]
    text = section({"cores": 2, "batch": 128, "rounds": 3, "rows": rows})
    assert "| codec | one thread | 120 | 1 | 240 | 2 | 2 |" in text


def test_training_bench_measures_a_step():
    measure = runpy.run_path(str(BENCH / "training.py"))["measure"]
    assert measure("codec", batch=8, seconds=0.01) > 0


def test_sessions_bench_with_a_stand_in_and_without_data(tmp_path):
    """Nothing to compare with is said; a stand-in of the simulator goes through the whole page."""
    call = [sys.executable, str(BENCH / "sessions.py"), "--run_dir", str(tmp_path), "--stand_in"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "nothing to compare" in done.stderr

    bench = runpy.run_path(str(BENCH / "sessions.py"))
    people = pd.DataFrame({"patient": range(24), "age": 30.0, "height": 172.0, "sex": "male"})
    people["age"] += people["patient"]
    first, second = (bench["simulated_for"](people, 1, seed) for seed in (0, 1))
    assert first.counts()["people"] == second.counts()["people"] == 24
    settings = bench["ReportSettings"](times=5)
    numbers = bench["sessions_report"](
        {"simulated": bench["Beside"](first, second)}, None, settings
    )
    numbers |= {"stand_in": True, "left_out": ["recorded sessions"], "speed": []}
    numbers["aims"] = [aim._asdict() for aim in bench["session_aims"](numbers)]
    write_json(tmp_path / "sessions.json", numbers)
    page = runpy.run_path(str(BENCH / "table.py"))["page"](tmp_path)
    assert "stand in for generated ones" in page
    assert "Left out: recorded sessions" in page
    assert "| effort A |" in page
