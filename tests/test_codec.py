"""The codec that is shipped, on blows that were recorded (where they are at hand) and on computed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.formats.waveform import read_waveform
from spiro_diffusion.spirometry.clock import to_clock
from spiro_diffusion.spirometry.indices import indices_on_clock
from spiro_diffusion.vqvae import VQVAE

WAVEFORMS = sorted(
    p
    for p in (Path(__file__).parents[2] / "shared/data/waveforms/ats24").glob("*.wf")
    if p.stem[2:] >= "05"
)


@pytest.fixture(scope="module")
def codec() -> VQVAE:
    return VQVAE.from_pretrained()


def test_shipped_weights_hold_a_computed_blow(codec: VQVAE) -> None:
    time = np.arange(0, 1001) / 100
    t = np.maximum(time - 0.1, 0)
    flow = to_clock(4 * (1 - (0.6 * np.exp(-t / 0.6) - 0.05 * np.exp(-t / 0.05)) / 0.55), time)
    codes = codec.encode(flow)
    back = codec.decode(codes)
    assert codes.shape == (1, 32) and codes.dtype == np.uint16 and (back >= 0).all()
    a, b = indices_on_clock(flow).iloc[0], indices_on_clock(back).iloc[0]
    assert (
        abs(a.fvc - b.fvc) < 0.02 * a.fvc
        and abs(a.fev1 - b.fev1) < 0.02 * a.fev1
        and abs(a.pef - b.pef) < 0.05 * a.pef
    )


def test_any_latents_decode_to_a_possible_blow(codec: VQVAE) -> None:
    z = np.random.default_rng(0).normal(0, 3, (200, 1, 32)).astype(np.float32)
    for quantise in (True, False):
        flow = codec.decode_latents(z, quantise)
        assert np.isfinite(flow).all() and (flow >= 0).all()


@pytest.mark.skipif(not WAVEFORMS, reason="the ATS waveforms are not here")
@pytest.mark.parametrize("path", WAVEFORMS, ids=lambda p: p.stem)
def test_recorded_blows(codec: VQVAE, path: Path) -> None:
    flow = to_clock(*read_waveform(path))
    a, b = (
        indices_on_clock(flow).iloc[0],
        indices_on_clock(codec.decode(codec.encode(flow))).iloc[0],
    )
    assert (
        abs(b.fvc / a.fvc - 1) < 0.02
        and abs(b.fev1 / a.fev1 - 1) < 0.02
        and abs(b.pef / a.pef - 1) < 0.05
    )


def test_damaged_weights_are_named(codec: VQVAE, tmp_path: Path) -> None:
    codec.save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(DataError, match="model.safetensors"):
        VQVAE.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="config.json"):
        VQVAE.from_pretrained(tmp_path / "nowhere")
