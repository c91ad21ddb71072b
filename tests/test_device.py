"""Nothing on the way from noise to curves waits for the device or copies to it from the host.

Such a step is no error on a GPU, it is slow, and a CUDA graph cannot hold it.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from waiting import OnDeviceAlone

from spiro_diffusion.cldm import SAMPLERS, edm_loss, sample
from spiro_diffusion.generation.drawing import Models, load_models
from spiro_diffusion.generation.steering import steer
from spiro_diffusion.learning.curves import formula_blows
from spiro_diffusion.vqvae import codec_loss


@pytest.fixture(scope="module", params=["cpu", "meta"])
def models(request) -> Models:
    models = load_models()
    models.move_to(request.param)
    return models


def checked(call: Callable[[], Any]) -> Any:
    """What `call` gives the second time: constants are copied to a device the first time."""
    call()
    with OnDeviceAlone():
        return call()


def person(models: Models) -> Tensor:
    """Clinical values (4, K) of people of whom age, height and sex are known."""
    values = torch.full((4, len(models.cldm.settings.variables)), torch.nan)
    values[:, :3] = torch.tensor([45.0, 175.0, 1.0])
    return values.to(models.vqvae.device)


def latents(models: Models) -> Tensor:
    """Unit noise (4, C, P)."""
    settings = models.cldm.settings
    return torch.randn(4, settings.channels, settings.positions, device=models.vqvae.device)


@pytest.mark.parametrize(
    ("method", "guidance"), [("dpmpp", 2.0), *((method, 1.0) for method in SAMPLERS)]
)
def test_sampling(models, method, guidance):
    values = person(models)
    noise = latents(models)
    drawn = checked(lambda: sample(models.cldm.denoiser(values, guidance), noise, 3, method))
    assert drawn.shape == noise.shape


def test_decoding(models):
    z = latents(models)
    with torch.no_grad():
        assert checked(lambda: models.decode(z)).shape == (4, 512)


def test_training_the_codec(models):
    """The loss and its gradient; `torch.rand` of a seeded generator is not there on "meta"."""
    codec = deepcopy(models.vqvae).requires_grad_(True)
    flow = torch.from_numpy(formula_blows(8)).to(codec.device)
    checked(lambda: codec_loss(codec, (flow,), None, 0)[0].backward())


def test_training_the_denoiser(models):
    network = deepcopy(models.cldm).requires_grad_(True)
    batch = (latents(models), person(models))
    checked(lambda: edm_loss(network, batch)[0].backward())


def test_steering(models):
    values = person(models)
    noise = latents(models)
    for wanted in (3.0, torch.full((4,), 3.0, device=values.device)):
        steered = steer(models.cldm.denoiser(values), models.decode, {"fev1": wanted})
        checked(lambda steered=steered: sample(steered, noise, 3))


@pytest.mark.parametrize(
    ("said", "device", "fault"),
    [
        ("waits", "cpu", lambda x: x.sum().item()),
        ("waits", "cpu", lambda x: x[x > 0]),
        ("waits", "cpu", lambda x: bool((x > 0).any())),
        ("waits", "cpu", lambda x: x.nonzero()),
        ("waits", "cpu", lambda x: torch.equal(x, x)),
        ("host's numbers", "cpu", lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device)),
        ("tensors on cpu and meta", "meta", lambda x: x * torch.ones(3).to(x.device)),
        ("tensors on cpu and meta", "meta", lambda x: x * torch.ones(())),
    ],
)
def test_faults_are_found(said, device, fault):
    with pytest.raises(AssertionError, match=said), OnDeviceAlone():
        fault(torch.ones(3, device=device))
