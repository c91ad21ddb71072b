"""The READMEs say what is so: their table is that of figures/metrics.json, their files and commands exist."""

import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest

from spiro_diffusion.evaluation import metrics_markdown

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")


@pytest.mark.parametrize("name", READMES)
def test_table_is_that_of_metrics(name):
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "figures/metrics.json"], cwd=ROOT).returncode:
        pytest.skip("figures/metrics.json is of a run of your own")
    metrics = json.loads((ROOT / "figures" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics_markdown(metrics) in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", READMES)
def test_links_and_commands_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    setup = configparser.ConfigParser(delimiters=["="])
    setup.read(ROOT / "settings.ini")
    scripts = {line.split("=")[0].strip() for line in setup["DEFAULT"]["console_scripts"].splitlines() if line.strip()}
    assert set(re.findall(r"\.venv/bin/(spiro_\w+)", text)) <= scripts
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {t for t in re.findall(r"make (\w+)", text) if t not in ("it",)} <= targets


def test_both_languages_have_the_same_commands():
    blocks = [re.findall(r"```sh\n(.*?)```", (ROOT / n).read_text(encoding="utf-8"), flags=re.S) for n in READMES]
    strip = lambda block: [line.split("#")[0].strip() for line in block.splitlines()]
    assert [strip(b) for b in blocks[0]] == [strip(b) for b in blocks[1]]
