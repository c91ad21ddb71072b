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
