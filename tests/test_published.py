"""Figures, tables, weights and model card are those of one run."""

import json
import re
from pathlib import Path

import pytest

from spiro_diffusion.apps.publish import CARD, READMES, RECORD, published_state, weights_table
from spiro_diffusion.evaluation import metrics_markdown

ROOT = Path(__file__).parent.parent
METRICS = json.loads((ROOT / "figures" / "metrics.json").read_text(encoding="utf-8"))


def test_figures_and_weights_are_those_of_the_record():
    record = json.loads((ROOT / "figures" / RECORD).read_text(encoding="utf-8"))
    assert record == published_state(ROOT), "run make paper, which publishes all of it together"


def test_metrics_are_of_the_weights_in_the_package():
    weights = published_state(ROOT)["weights"]
    assert METRICS["weights_sha256"] == {m: weights[m] for m in METRICS["weights_sha256"]}


@pytest.mark.parametrize("name", [*READMES, CARD])
def test_tables_are_those_of_the_metrics(name):
    assert metrics_markdown(METRICS) in (ROOT / name).read_text(encoding="utf-8")


def test_the_card_names_the_weights():
    card = (ROOT / CARD).read_text(encoding="utf-8")
    assert weights_table(published_state(ROOT)["weights"]) in card


@pytest.mark.parametrize("met", [True, False])
def test_every_aim_is_printed_as_met_or_missed(met):
    """Whatever the verdicts are, each row of the table says so: a miss cannot be hidden."""
    verdicts = [verdict | {"met": met} for verdict in METRICS["verdicts"]]
    lines = metrics_markdown(METRICS | {"verdicts": verdicts}).splitlines()
    ends = [line.split(" | ")[-1].strip("| ") for line in lines]
    wanted = "met" if met else "**missed**"
    assert [end for end in ends if end in ("met", "**missed**")] == [wanted] * len(verdicts)


def test_figures_have_captions_and_captions_have_figures():
    captions = (ROOT / "figures" / "captions.md").read_text(encoding="utf-8")
    files = (ROOT / "figures").glob("figure*")
    drawn = {path.stem.removeprefix("figure").split("_")[0] for path in files}
    assert drawn == set(re.findall(r"\*\*Figure (\w+)\.\*\*", captions))
