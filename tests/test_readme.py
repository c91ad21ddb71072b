"""The READMEs and cards say what is so: their files and commands exist, in both languages."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")
CARDS = (
    "DATASET_CARD.md",
    "spiro_diffusion/weights/MODEL_CARD.md",
    "spiro_diffusion/weights/DATA_CARD.md",
)


@pytest.mark.parametrize("name", [*READMES, *CARDS])
def test_links_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / name).parent / link).exists(), link


@pytest.mark.parametrize("name", READMES)
def test_commands_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
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


def commands_of(block: str) -> list[str]:
    """The lines of a code block without their comments."""
    return [line.split("#")[0].strip() for line in block.splitlines()]


def test_both_languages_have_the_same_commands():
    blocks = [
        re.findall(r"```sh\n(.*?)```", (ROOT / n).read_text(encoding="utf-8"), flags=re.S)
        for n in READMES
    ]
    assert [commands_of(b) for b in blocks[0]] == [commands_of(b) for b in blocks[1]]


@pytest.mark.parametrize("name", CARDS)
def test_cards_have_a_head_that_parses(name):
    _, head, body = (ROOT / name).read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    assert {"synthetic", "spirometry"} <= set(yaml.safe_load(head)["tags"])
    assert "not a medical device" in body or "not for a diagnosis" in body


def test_citation_is_valid():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors", "version", "license"} <= set(cff)
    assert cff["authors"]
    assert all(a for a in cff["authors"])
