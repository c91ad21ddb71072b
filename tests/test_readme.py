"""The READMEs and cards say what is so: their tables are those of figures/metrics.json, their files and commands exist."""

import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from spiro_diffusion.evaluation import metrics_markdown

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")
CARDS = ("DATASET_CARD.md", "spiro_diffusion/weights/MODEL_CARD.md")


@pytest.fixture(scope="module")
def metrics() -> dict:
    if subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "figures/metrics.json"], cwd=ROOT
    ).returncode:
        pytest.skip("figures/metrics.json is of a run of your own")
    return json.loads((ROOT / "figures" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", READMES)
def test_table_is_that_of_metrics(name, metrics):
    assert metrics_markdown(metrics) in (ROOT / name).read_text(encoding="utf-8")


def test_misses_are_printed_as_misses(metrics):
    missed = [v["aim"] for v in metrics["verdicts"] if not v["met"]]
    lines = metrics_markdown(metrics).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines if "**missed**" in line] == missed


@pytest.mark.parametrize("name", READMES)
def test_links_and_commands_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    setup = configparser.ConfigParser(delimiters=["="])
    setup.read(ROOT / "settings.ini")
    scripts = {
        line.split("=")[0].strip()
        for line in setup["DEFAULT"]["console_scripts"].splitlines()
        if line.strip()
    }
    assert set(re.findall(r"\.venv/bin/(spiro_\w+)", text)) <= scripts
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {t for t in re.findall(r"make (\w+)", text) if t not in ("it",)} <= targets


def test_both_languages_have_the_same_commands():
    blocks = [
        re.findall(r"```sh\n(.*?)```", (ROOT / n).read_text(encoding="utf-8"), flags=re.S)
        for n in READMES
    ]
    strip = lambda block: [line.split("#")[0].strip() for line in block.splitlines()]
    assert [strip(b) for b in blocks[0]] == [strip(b) for b in blocks[1]]


@pytest.mark.parametrize("name", CARDS)
def test_cards_have_a_head_that_parses(name):
    _, head, body = (ROOT / name).read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit" and {"synthetic", "spirometry"} <= set(
        yaml.safe_load(head)["tags"]
    )
    assert "not a medical device" in body or "not for a diagnosis" in body


def test_citation_is_valid():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (
        {"cff-version", "title", "message", "authors", "version", "license"} <= set(cff)
        and cff["authors"]
        and all(a for a in cff["authors"])
    )
