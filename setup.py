"""Packaging, read from settings.ini (nbdev's convention, with today's Python versions)."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def words(key: str) -> list[str]:
    """The space-separated requirements under `key`."""
    return cfg.get(key, "").split()


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["spiro_diffusion", "spiro_diffusion.*"]),
    package_data={
        "spiro_diffusion": ["weights/*", "weights/*/*"],
        "spiro_diffusion.simulator": ["*.json"],
        "spiro_diffusion.metrics": ["*.mplstyle"],
    },
    install_requires=words("requirements"),
    extras_require={
        "dev": words("dev_requirements"),
        "distributed": words("distributed_requirements"),
        "eval": words("eval_requirements"),
    },
    entry_points={
        "console_scripts": [
            line.strip() for line in cfg["console_scripts"].splitlines() if line.strip()
        ]
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
    ],
    zip_safe=False,
)
