"""Figures, tables, weights and model card are those of one run."""

import json
import re
from pathlib import Path

import pytest

from spiro_diffusion.apps.cards import NUMBER
from spiro_diffusion.apps.publish import (
    CARD,
    DATA_CARD,
    PAPER,
    READMES,
    RECORD,
    pages,
    published_records,
    published_state,
)
from spiro_diffusion.evaluation import metrics_markdown
from spiro_diffusion.metrics.figures import CAPTIONS
from spiro_diffusion.vqvae import settings_for

ROOT = Path(__file__).parent.parent
METRICS = json.loads((ROOT / "figures" / "metrics.json").read_text(encoding="utf-8"))
PAGES = (*READMES, CARD, DATA_CARD)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_figures_weights_and_benchmarks_are_those_of_the_record():
    record = json.loads(text_of(f"figures/{RECORD}"))
    assert record == published_state(ROOT), "run make paper, which publishes all of it together"


def test_metrics_are_of_the_weights_in_the_package():
    weights = published_state(ROOT)["weights"]
    assert METRICS["weights_sha256"] == {m: weights[m] for m in METRICS["weights_sha256"]}


def test_training_and_benchmarks_are_of_the_weights_in_the_package():
    weights = published_state(ROOT)["weights"]
    records = published_records(ROOT)
    assert records["training"]["weights_sha256"] == weights
    for name in PAPER.benches:
        said = records.get(name, {}).get("weights_sha256", {})
        said = {"completion": said} if isinstance(said, str) else said
        assert said == {m: weights[m] for m in said}, name


def test_the_command_on_the_card_trains_as_many_steps():
    stages = published_records(ROOT)["training"]["stages"]
    codec_steps = settings_for(PAPER.profile, steps=PAPER.only.get("01_vqvae", {}).get("steps", 0))
    assert stages["vqvae"]["steps"] == codec_steps.train.steps
    assert stages["cldm"]["steps"] == PAPER.only["03_cldm"]["steps"]
    assert stages["completion/forecast"]["steps"] == PAPER.only["03_cldm"]["completion_steps"]


def test_tables_and_numbers_are_those_of_the_records():
    made = pages(ROOT, published_records(ROOT))
    assert set(PAGES) <= set(made)
    assert [name for name in made if text_of(name) != made[name]] == [], "make paper --pages-only"


@pytest.mark.parametrize("name", READMES)
def test_readmes_name_numbers_of_the_run(name):
    assert len(NUMBER.findall(text_of(name))) >= 4


MEASURED = re.compile(
    r"(?<![\w.,/-])\d[\d,]*\.\d+|"  # decimals
    r"\d[\d.,]*\s?%|"  # shares
    r"\d{1,3}(?:,\d{3})+|"  # counts
    r"\d[\d.]*\s?(?:minutes|hours|seconds|times|mL|MB|GB|分钟|小时|秒|倍)"
)
"""What a number that was measured looks like."""
GIVEN = {
    "3.11",  # Python
    "20.48",  # s, the clock's end
    "5,000",  # curves a file, in an example
    "95 %",  # the level of intervals
    "95%",
    "90 %",
    "--target fev1=2.1",
    "fev1=2.1",
    "0.5",  # the mean rank of a right simulator
}
"""What looks so, and is a version, a setting, a level or part of an example."""


def prose(text: str) -> str:
    """A page without its head, code, links, comments, and what stands between marks."""
    text = text.split("---\n", 2)[2] if text.startswith("---\n") else text
    text = NUMBER.sub("", text)
    for part in (
        r"<!-- (\w+)\b[^>]*-->.*?<!-- /\1 -->",
        r"```.*?```",
        r"`[^`\n]*`",
        r"\]\([^)]*\)",
        r"<https?:[^>]*>",
    ):
        text = re.sub(part, "", text, flags=re.DOTALL)
    return text


@pytest.mark.parametrize("name", PAGES)
def test_no_measured_number_is_typed_by_hand(name):
    found = [number.strip() for number in MEASURED.findall(prose(text_of(name)))]
    stray = [number for number in found if number not in GIVEN]
    assert not stray, "let the sentence name the number (apps/07_cards), or leave it out"


def test_a_typed_number_would_be_found():
    typed = "AUC 0.53, 88 % of 5,297 people, 12 mL off, twice in 15 minutes, 用时 15 分钟"
    assert len(MEASURED.findall(prose(typed))) == 6
    filled = "AUC <!--= metrics /network/auc .2f -->0.53<!--/-->, `0.53`, FEV1/FVC at 45 years"
    assert not MEASURED.findall(prose(filled))


@pytest.mark.parametrize("met", [True, False])
def test_every_aim_is_printed_as_met_or_missed(met):
    """Whatever the verdicts are, each row of the table says so: a miss cannot be hidden."""
    verdicts = [verdict | {"met": met} for verdict in METRICS["verdicts"]]
    lines = metrics_markdown(METRICS | {"verdicts": verdicts}).splitlines()
    ends = [line.rsplit("|", 2)[-2].strip() for line in lines if line.startswith("| ")]
    wanted = "met" if met else "**missed**"
    assert [end for end in ends if end in ("met", "**missed**")] == [wanted] * len(verdicts)


def captions() -> dict[str, str]:
    """The published captions by the number of the figure."""
    found = re.findall(r"\*\*Figure (\w+)\.\*\* (.*)", text_of("figures/captions.md"))
    return dict(found)


def test_figures_have_captions_and_captions_have_figures():
    files = (ROOT / "figures").glob("figure*")
    drawn = {path.stem.removeprefix("figure").split("_")[0] for path in files}
    assert drawn == set(captions())
    assert drawn <= {name.removeprefix("figure").split("_")[0] for name in CAPTIONS}


@pytest.mark.parametrize("number", captions())
def test_captions_say_how_many_whose_and_which_seed(number):
    caption = captions()[number]
    assert re.search(r"\d[\d,]* ", caption), "how many"
    assert "simulated" in caption or "recorded" in caption
    assert re.search(r"seed \d", caption)
