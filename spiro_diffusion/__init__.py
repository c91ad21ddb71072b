"""Forced-expiratory flow-volume curves, generated and reconstructed.

The public names below are loaded on first use (PEP 562), so that `import spiro_diffusion` is quick
and needs neither torch nor pandas.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "data": ("prepare", "prepare_recordings", "load_prepared"),
    "vqvae": ("VQVAE",),
    "cldm": ("CLDM",),
    "inference": ("generate",),
    "spirometry.manoeuvre": ("find_expirations", "forced_expirations"),
    "spirometry.clock": ("CLOCK", "to_clock", "from_clock"),
    "spirometry.indices": ("indices", "indices_on_clock"),
    "spirometry.quality": ("acceptability", "repeatability"),
    "spirometry.reference": ("zscores", "predicted"),
    "formats.tables": ("read_table", "iter_table", "write_xport"),
    "formats.nhanes": ("read_people",),
    "formats.waveform": ("read_waveform",),
    "formats.ukb": ("read_ukb",),
    "formats.recording": ("Recording", "measure_recordings"),
    "formats.recognise": ("read_recordings",),
    "formats.written": ("write_recordings",),
    "simulator.people": ("simulate_people",),
    "simulator.session": ("simulate_blows",),
    "simulator.survey": ("write_nhanes",),
    "generation.drawing": ("load_models",),
    "generation.session": ("generate_sessions", "more_trials", "read_sessions"),
    "completion.reconstruction": ("reconstruct",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
