"""The networks and codecs that bench/peers.py compares: this project's, and other packages'.

Peers have about as many parameters, the same latent (1 x 32), the same batch and the same optimiser
as this project's; each draws with its own package's sampler. Peers with cross-attention see the
clinical tokens of a Conditioner of this project, so all conditional ones do the same task;
unconditional ones (`conditional` False) do less.

torchvision, which two of the packages import for pictures that are not used here, is replaced by an
empty stand-in. A peer is added by a function that makes it, in `NETWORKS` or `CODECS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from spiro_diffusion.cldm import CLDM, CLDMSettings, Conditioner, edm_loss, hide_values, sample
from spiro_diffusion.generation.drawing import (
    DrawSettings,
    Models,
    draw_rows,
    requested_patients,
)
from spiro_diffusion.vqvae import VQVAE, codec_loss

OURS = "Spiro-Diffusion"
BATCH = 128  # of a step of the quantiser alone
TRAINING_LEVELS = 1000  # noise levels of the peers' schedules (Ho 2020)
DDIM_CALLS = 50
RECOMMENDED_DPM_CALLS = 20  # diffusers' documentation of DPMSolverMultistepScheduler
CODES = 512
CODE_DIMENSIONS = 8  # of the peers' quantisers

Draw = Callable[[Tensor, Tensor], Tensor]
"""Unit noise (B, 1, 32) and people (B, K) to latents."""


@dataclass
class Codec:
    """Between flow (B, 512) and codes at 32 positions."""

    name: str
    module: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor], Tensor]  # of flow (B, 512)
    quantise: Callable[[], Any]  # one step of the quantiser in training, of 128 x 32 latents


@dataclass
class Network:
    """A denoiser of latents (B, 1, 32)."""

    name: str
    module: nn.Module  # what is trained; its part `unet` is what is compared
    ready: Callable[[Tensor], Callable[[Tensor], Tensor]]  # people -> one call on noisy latents
    loss: Callable[[Tensor, Tensor], Tensor]  # of latents and people
    samplers: dict[str, Draw]
    conditional: bool = True
    not_recommended: dict[str, Draw] = field(default_factory=dict)  # at this project's calls
    whole: dict[str, Callable[[], Any]] = field(default_factory=dict)  # with decoding and more


def our_codec(device: str) -> Codec:
    """The shipped codec."""
    vqvae = VQVAE.from_pretrained().to(device)
    generator = torch.Generator(device)
    z = torch.randn(BATCH, 1, 32, device=device)

    def loss(flow: Tensor) -> Tensor:
        return codec_loss(vqvae, (flow,), generator, 0)[0]

    return Codec(OURS, vqvae, vqvae.encode, vqvae.decode, loss, partial(vqvae.quantiser, z))


def our_network(models: Models, calls: int, table: pd.DataFrame) -> Network:
    """The shipped cLDM; `calls`: calls of its U-Net by the default sampler.

    table: patients, a curve of each of whom is generated as a user would.
    """
    cldm = CLDM.from_pretrained().to(models.vqvae.device).requires_grad_(True)
    generator = torch.Generator(models.vqvae.device)

    def draw(noise: Tensor, people: Tensor, calls: int) -> Tensor:
        return sample(cldm.denoiser(people), noise, calls + 1)

    def ready(people: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(cldm.denoiser(people), sigma=1.0)

    def loss(z: Tensor, people: Tensor) -> Tensor:
        return edm_loss(cldm, (z, people), generator)[0]

    usual = partial(draw, calls=calls)
    samplers = {
        f"DPM-Solver++ 2M, {calls} calls (default)": usual,
        f"DPM-Solver++ 2M, {calls - 1} calls": partial(draw, calls=calls - 1),
    }
    at_these_calls = {f"DPM-Solver++ 2M, {calls} calls": usual}
    patients = requested_patients(table, DrawSettings(), cldm.settings)
    on = models.vqvae.device
    once = DrawSettings(redraws=0)
    whole = {
        f"{calls} calls, indices, z-scores": partial(
            draw_rows, patients, once, models, on, progress=False
        ),
        f"{calls} calls, indices, z-scores, redraws": partial(
            draw_rows, patients, DrawSettings(), models, on, progress=False
        ),
    }
    return Network(OURS, cldm, ready, loss, samplers, True, at_these_calls, whole)


class Peer(nn.Module):
    """Another package's U-Net, and this project's conditioner (none if it cannot be conditioned).

    call(x, t, tokens): the U-Net on noisy latents, with noise levels t (B,) and tokens or None.
    """

    def __init__(
        self,
        unet: nn.Module,
        call: Callable[..., Tensor],
        settings: CLDMSettings,
        conditional: bool,
    ):
        super().__init__()
        self.unet = unet
        self.call = call
        self.settings = settings
        self.conditioner = None
        if conditional:
            self.conditioner = Conditioner(
                settings.variables, settings.mean, settings.std, settings.token
            )

    def tokens(self, people: Tensor) -> Tensor | None:
        return self.conditioner(people) if self.conditioner is not None else None

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        return self.call(x, t, tokens)

    def ready(self, people: Tensor) -> Callable[[Tensor], Tensor]:
        """One call, half-way through the noise levels."""
        t = torch.full((len(people),), TRAINING_LEVELS // 2, device=people.device)
        return partial(self, t=t, tokens=self.tokens(people))

    def loss(self, scheduler: Any, z: Tensor, people: Tensor) -> Tensor:
        """The usual loss: the mean squared error of the noise (Ho 2020)."""
        noise = torch.randn_like(z)
        t = torch.randint(TRAINING_LEVELS, (len(z),), device=z.device)
        hidden = hide_values(people, self.settings.variables, self.settings.hide_all)
        noisy = scheduler.add_noise(original_samples=z, noise=noise, timesteps=t)
        return functional.mse_loss(self(noisy, t, self.tokens(hidden)), noise)


def stand_in(name: str = "torchvision") -> None:
    """An empty module in place of `name`."""
    for part in (name, f"{name}.transforms", f"{name}.utils"):
        sys.modules[part] = MagicMock(__spec__=ModuleSpec(part, None))


def of_lucidrains(settings: CLDMSettings, calls: int) -> list[Network]:
    """denoising-diffusion-pytorch: Unet1D in GaussianDiffusion1D."""
    stand_in()
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch_1d as package

    def no_progress(rounds: Any, **_: Any) -> Any:
        return rounds

    package.tqdm = no_progress  # it would be timed
    unet = package.Unet1D(dim=24, dim_mults=(1, 2, 4), channels=settings.channels)
    diffusion = package.GaussianDiffusion1D(
        unet,
        seq_length=settings.positions,
        sampling_timesteps=DDIM_CALLS,
        auto_normalize=False,
    )

    def call(x: Tensor, t: Tensor, tokens: None) -> Tensor:
        return unet(x, t)

    def loss(z: Tensor, people: Tensor) -> Tensor:
        return diffusion(z)

    def draw(noise: Tensor, people: Tensor) -> Tensor:
        return diffusion.sample(batch_size=len(noise))

    peer = Peer(unet, call, settings, conditional=False)
    peer.diffusion = diffusion
    samplers = {f"DDIM, {DDIM_CALLS} calls": draw}
    name = "denoising-diffusion-pytorch Unet1D"
    return [Network(name, peer, peer.ready, loss, samplers, conditional=False)]


def of_diffusers(settings: CLDMSettings, calls: int) -> list[Network]:
    """diffusers: UNet1DModel, and UNet2DConditionModel on latents of height 1."""
    stand_in()
    peers = {
        "diffusers UNet1DModel": diffusers_1d(settings),
        "diffusers UNet2DConditionModel, height 1": diffusers_2d(settings),
    }
    return [diffusers_network(name, peer, calls) for name, peer in peers.items()]


def diffusers_1d(settings: CLDMSettings) -> Peer:
    """UNet1DModel, which has no cross-attention."""
    from diffusers import UNet1DModel

    widths = (32, 48, 64)
    unet = UNet1DModel(
        sample_size=settings.positions,
        in_channels=settings.channels,
        out_channels=settings.channels,
        extra_in_channels=2 * widths[0],
        block_out_channels=widths,
    )

    def call(x: Tensor, t: Tensor, tokens: None) -> Tensor:
        return unet(x, t).sample

    return Peer(unet, call, settings, conditional=False)


def diffusers_2d(settings: CLDMSettings) -> Peer:
    """UNet2DConditionModel; attention at the two upper levels, as in its defaults."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=(1, settings.positions),
        in_channels=settings.channels,
        out_channels=settings.channels,
        block_out_channels=(24, 40, 56),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=settings.token,
        attention_head_dim=4,
    )

    def call(x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return unet(x[:, :, None], t, tokens).sample[:, :, 0]

    return Peer(unet, call, settings, conditional=True)


def diffusers_network(name: str, peer: Peer, calls: int) -> Network:
    """A U-Net of diffusers with the samplers that its documentation recommends."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    def draw(noise: Tensor, people: Tensor, scheduler: Any, calls: int) -> Tensor:
        scheduler.set_timesteps(calls)
        tokens = peer.tokens(people)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(peer(x, t, tokens), t, x).prev_sample
        return x

    def dpm_solver(calls: int) -> dict[str, Draw]:
        sampler = partial(draw, scheduler=DPMSolverMultistepScheduler(), calls=calls)
        return {f"DPM-Solver++ 2M, {calls} calls": sampler}

    ddim = partial(draw, scheduler=DDIMScheduler(), calls=DDIM_CALLS)
    return Network(
        name,
        peer,
        peer.ready,
        partial(peer.loss, DDPMScheduler()),
        {f"DDIM, {DDIM_CALLS} calls": ddim, **dpm_solver(RECOMMENDED_DPM_CALLS)},
        peer.conditioner is not None,
        dpm_solver(calls),
    )


def monai_block(self: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    """MONAI's residual block in one dimension."""
    h = self.nonlinearity(self.norm1(x))
    for resize in (self.upsample, self.downsample):
        if resize is not None:
            x = resize(x)
            h = resize(h)
    h = self.conv1(h) + self.time_emb_proj(self.nonlinearity(emb))[:, :, None]
    return self.skip_connection(x) + self.conv2(self.nonlinearity(self.norm2(h)))


def monai_transformer(self: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
    """MONAI's spatial transformer in one dimension."""
    h = self.proj_in(self.norm(x)).transpose(1, 2)
    for layer in self.transformer_blocks:
        h = layer(h, context=context)
    return x + self.proj_out(h.transpose(1, 2).contiguous())


def patch_monai() -> None:
    """One dimension for MONAI, whose blocks, transformers and EMA quantiser know two and three."""
    from monai.networks.nets import diffusion_model_unet as nets
    from monai.networks.nets import vqvae

    class Quantiser(vqvae.EMAQuantizer):
        def __init__(self, spatial_dims: int, **settings: Any):
            super().__init__(spatial_dims=2, **settings)
            self.flatten_permutation = [0, 2, 1]
            self.quantization_permutation = [0, 2, 1]

    nets.DiffusionUNetResnetBlock.forward = monai_block
    nets.SpatialTransformer.forward = monai_transformer
    if vqvae.EMAQuantizer.__name__ != "Quantiser":
        vqvae.EMAQuantizer = Quantiser


def of_monai(settings: CLDMSettings, calls: int) -> list[Network]:
    """MONAI: DiffusionModelUNet (patched), cross-attention at the two lower levels."""
    from monai.inferers import DiffusionInferer
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

    patch_monai()
    unet = DiffusionModelUNet(
        spatial_dims=1,
        in_channels=settings.channels,
        out_channels=settings.channels,
        num_res_blocks=1,
        channels=(32, 48, 64),
        attention_levels=(False, True, True),
        norm_num_groups=8,
        num_head_channels=8,
        with_conditioning=True,
        cross_attention_dim=settings.token,
    )
    peer = Peer(unet, unet, settings, conditional=True)
    scheduler = DDIMScheduler(num_train_timesteps=TRAINING_LEVELS)

    def draw(noise: Tensor, people: Tensor) -> Tensor:
        scheduler.set_timesteps(DDIM_CALLS)
        return DiffusionInferer(scheduler).sample(
            noise, unet, scheduler, conditioning=peer.tokens(people), verbose=False
        )

    loss = partial(peer.loss, DDPMScheduler(num_train_timesteps=TRAINING_LEVELS))
    samplers = {f"DDIM, {DDIM_CALLS} calls": draw}
    name = "MONAI DiffusionModelUNet (patched for 1-D)"
    return [Network(name, peer, peer.ready, loss, samplers)]


class Residual(nn.Module):
    """x + conv(GELU(conv(GELU(norm(x)))))."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class PlainCodec(nn.Module):
    """A convolutional codec, 512 bins to 32 positions in one stride of 16, around a quantiser."""

    WIDTH = 128
    BLOCKS = 2
    STRIDE = 16

    def __init__(self, quantiser: nn.Module):
        super().__init__()
        width = self.WIDTH
        self.encoder = nn.Sequential(
            nn.Conv1d(1, width, self.STRIDE, stride=self.STRIDE),
            *(Residual(width) for _ in range(self.BLOCKS)),
            nn.Conv1d(width, CODE_DIMENSIONS, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(CODE_DIMENSIONS, width, 1),
            *(Residual(width) for _ in range(self.BLOCKS)),
            nn.ConvTranspose1d(width, 1, self.STRIDE, stride=self.STRIDE),
        )
        self.quantiser = quantiser
        if hasattr(quantiser, "indices_to_codes"):
            self.values = quantiser.indices_to_codes
        else:
            self.values = quantiser.get_output_from_indices

    def encode(self, flow: Tensor) -> Tensor:
        return self.quantiser(self.encoder(flow[:, None]).transpose(1, 2))[1]

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.values(codes).transpose(1, 2))[:, 0]

    def loss(self, flow: Tensor) -> Tensor:
        values, _, *commitment = self.quantiser(self.encoder(flow[:, None]).transpose(1, 2))
        made = self.decoder(values.transpose(1, 2))[:, 0]
        return functional.l1_loss(made, flow) + sum(term.sum() for term in commitment)


def of_vector_quantize(device: str) -> list[Codec]:
    """vector-quantize-pytorch: three quantisers of 8 dimensions in a plain codec."""
    from vector_quantize_pytorch import FSQ, ResidualVQ, VectorQuantize

    dim = CODE_DIMENSIONS
    quantisers = {
        "VectorQuantize (EMA), 512 codes": VectorQuantize(dim=dim, codebook_size=CODES, decay=0.99),
        "FSQ, 8 x 8 x 8 levels": FSQ(levels=[8, 8, 8], dim=dim),
        "ResidualVQ, 2 x 512 codes": ResidualVQ(dim=dim, num_quantizers=2, codebook_size=CODES),
    }
    z = torch.randn(BATCH, 32, dim, device=device)
    codecs = []
    for kind, quantiser in quantisers.items():
        net = PlainCodec(quantiser).to(device)
        name = f"vector-quantize-pytorch {kind}"
        codecs.append(Codec(name, net, net.encode, net.decode, net.loss, partial(quantiser, z)))
    return codecs


def of_monai_vqvae(device: str) -> list[Codec]:
    """MONAI: VQVAE (patched), two strides of 4."""
    from monai.networks import nets

    patch_monai()
    net = nets.VQVAE(
        spatial_dims=1,
        in_channels=1,
        out_channels=1,
        channels=(96, 96),
        num_res_layers=1,
        num_res_channels=(96, 96),
        num_embeddings=CODES,
        embedding_dim=CODE_DIMENSIONS,
        downsample_parameters=((4, 8, 1, 2),) * 2,
        upsample_parameters=((4, 8, 1, 2, 0),) * 2,
    ).to(device)
    z = torch.randn(BATCH, CODE_DIMENSIONS, 32, device=device)

    def encode(flow: Tensor) -> Tensor:
        return net.index_quantize(flow[:, None])

    def decode(codes: Tensor) -> Tensor:
        return net.decode_samples(codes)[:, 0]

    def loss(flow: Tensor) -> Tensor:
        made, quantisation = net(flow[:, None])
        return functional.l1_loss(made, flow[:, None]) + quantisation

    name = "MONAI VQVAE (patched for 1-D)"
    return [Codec(name, net, encode, decode, loss, partial(net.quantizer, z))]


NETWORKS = {
    "denoising-diffusion-pytorch": of_lucidrains,
    "diffusers": of_diffusers,
    "monai": of_monai,
}
CODECS = {"vector-quantize-pytorch": of_vector_quantize, "monai": of_monai_vqvae}
