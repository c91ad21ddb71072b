"""The benchmarks' page is made from their results."""

import runpy
from pathlib import Path

BENCH = Path(__file__).parent.parent / "bench"


def test_page_is_that_of_the_results():
    page = runpy.run_path(str(BENCH / "table.py"))["page"]()
    assert page == (BENCH / "README.md").read_text(encoding="utf-8"), "run: python bench/table.py"
    assert all(
        f"## {p.stem.replace('_', ' ')}\n" in page for p in (BENCH / "results").glob("*.json")
    )


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
