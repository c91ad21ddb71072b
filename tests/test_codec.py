"""The codec that is shipped, on computed, simulated and (where at hand) recorded curves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spiro_diffusion import VQVAE, load_prepared, prepare
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.formats.waveform import read_waveform
from spiro_diffusion.learning.curves import formula_blows
from spiro_diffusion.spirometry.clock import to_clock
from spiro_diffusion.spirometry.indices import indices_on_clock

TOLERANCE = {"fvc": 0.02, "fev1": 0.02, "pef": 0.05}  # relative


@pytest.fixture(scope="module")
def codec() -> VQVAE:
    return VQVAE.from_pretrained()


def assert_kept(codec: VQVAE, flow: np.ndarray) -> None:
    """FVC, FEV1 and PEF of flow (N, 512) L/s survive 32 codes."""
    codes = codec.encode(flow)
    assert codes.shape == (len(flow), 32)
    assert codes.dtype == np.uint16
    recon = codec.decode(codes)
    assert (recon >= 0).all()
    columns = list(TOLERANCE)
    error = (indices_on_clock(recon) / indices_on_clock(flow) - 1)[columns].abs()
    wrong = error[(error > pd.Series(TOLERANCE)).any(axis=1)]
    assert wrong.empty, wrong


def test_computed_curves(codec: VQVAE) -> None:
    assert_kept(codec, formula_blows(50))


def test_simulated_curves(codec: VQVAE, tmp_path: Path) -> None:
    prepare(Path(__file__).parent / "data", tmp_path / "data" / "processed")
    flow, _ = load_prepared(tmp_path)
    assert len(flow) == 50
    assert_kept(codec, np.asarray(flow))


def test_recorded_curves(codec: VQVAE) -> None:
    """The standard waveforms of the American Thoracic Society, which may not be passed on."""
    folder = os.environ.get("SPIRO_WAVEFORMS")
    if not folder:
        pytest.skip("set SPIRO_WAVEFORMS to a folder with the ATS24 standard waveforms (.wf)")
    found = sorted(Path(folder).glob("*.wf"))
    assert found, f"{folder} has no .wf files"
    assert_kept(codec, np.concatenate([to_clock(*read_waveform(path)) for path in found]))


@pytest.mark.parametrize("quantise", [True, False])
def test_any_latents_decode_to_a_possible_curve(codec: VQVAE, quantise: bool) -> None:
    z = np.random.default_rng(0).normal(0, 3, (200, 1, 32)).astype(np.float32)
    flow = codec.decode_latents(z, quantise)
    assert np.isfinite(flow).all()
    assert (flow >= 0).all()


@pytest.mark.parametrize("quantise", [True, False])
def test_decoding_does_not_depend_on_the_batch(codec: VQVAE, quantise: bool) -> None:
    """Batch-size invariance to 1e-4 L/s; codes are the same."""
    flow = formula_blows(64)
    z = codec.latents(flow)
    one_by_one = np.concatenate([codec.decode_latents(z[i : i + 1], quantise) for i in range(64)])
    np.testing.assert_allclose(one_by_one, codec.decode_latents(z, quantise), atol=1e-4, rtol=0)
    codes = np.concatenate([codec.encode(flow[i : i + 1]) for i in range(64)])
    np.testing.assert_array_equal(codes, codec.encode(flow))


def test_damaged_weights_are_named(codec: VQVAE, tmp_path: Path) -> None:
    codec.save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        VQVAE.from_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"config\.json"):
        VQVAE.from_pretrained(tmp_path / "nowhere")
