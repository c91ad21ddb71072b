"""The networks and codecs that bench/peers.py compares: this project's, and peers built from other packages.

Peers have about as many parameters, the same latent (1 x 32), the same batch and the same optimiser as this project's;
each draws with its own package's sampler. Peers with cross-attention see the clinical tokens of a Conditioner of this
project, so all conditional ones do the same task; unconditional ones (`conditional` False) do less.

torchvision, which two of the packages import for pictures that are not used here, is replaced by an empty stand-in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiro_diffusion.cldm import CLDM, CLDMSettings, Conditioner, edm_loss, hide_values, sample
from spiro_diffusion.generation.drawing import Models
from spiro_diffusion.vqvae import VQVAE, codec_loss

OURS = "Spiro-Diffusion"


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
    ready: Callable[
        [Tensor], Callable[[Tensor], Tensor]
    ]  # people (B, K) -> one call on noisy latents
    loss: Callable[[Tensor, Tensor], Tensor]  # of latents and people
    samplers: dict[str, Callable[[Tensor, Tensor], Tensor]]  # noise and people -> latents
    conditional: bool = True
    not_recommended: dict[str, Callable[[Tensor, Tensor], Tensor]] = field(
        default_factory=dict
    )  # at this project's number of calls


def our_codec(device: str) -> Codec:
    vqvae = VQVAE.from_pretrained().to(device)
    generator, z = torch.Generator(device), torch.randn(128, 1, 32, device=device)
    return Codec(
        OURS,
        vqvae,
        vqvae.encode,
        vqvae.decode,
        lambda flow: codec_loss(vqvae, (flow,), generator, 0)[0],
        lambda: vqvae.quantiser(z),
    )


def our_network(models: Models, calls: int) -> Network:
    cldm = CLDM.from_pretrained().to(models.vqvae.device).requires_grad_(True)
    generator = torch.Generator(models.vqvae.device)

    def draw(calls: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda noise, people: sample(cldm.denoiser(people), noise, calls + 1)

    def ready(people: Tensor) -> Callable[[Tensor], Tensor]:
        denoise = cldm.denoiser(people)
        return lambda x: denoise(x, 1.0)

    samplers = {
        f"DPM-Solver++ 2M, {calls} calls (default)": draw(calls),
        f"DPM-Solver++ 2M, {calls - 1} calls": draw(calls - 1),
    }
    return Network(
        OURS,
        cldm,
        ready,
        lambda z, people: edm_loss(cldm, (z, people), generator)[0],
        samplers,
        True,
        {f"DPM-Solver++ 2M, {calls} calls": draw(calls)},
    )


class Peer(nn.Module):
    """Another package's U-Net, and the same conditioner as this project's (none if it cannot be conditioned)."""

    def __init__(
        self,
        unet: nn.Module,
        call: Callable[..., Tensor],
        settings: CLDMSettings,
        conditional: bool,
    ):
        super().__init__()
        self.unet, self.call, self.settings = unet, call, settings
        self.conditioner = (
            Conditioner(settings.variables, settings.mean, settings.std, settings.token)
            if conditional
            else None
        )

    def tokens(self, people: Tensor) -> Tensor | None:
        return self.conditioner(people) if self.conditioner is not None else None

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        return self.call(x, t, tokens)

    def ready(self, people: Tensor) -> Callable[[Tensor], Tensor]:
        tokens, t = self.tokens(people), torch.full((len(people),), 500, device=people.device)
        return lambda x: self(x, t, tokens)

    def loss(self, scheduler: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """The usual loss: the mean squared error of the noise (Ho 2020)."""

        def value(z: Tensor, people: Tensor) -> Tensor:
            s, noise, t = (
                self.settings,
                torch.randn_like(z),
                torch.randint(1000, (len(z),), device=z.device),
            )
            tokens = self.tokens(hide_values(people, s.variables, s.hide_all))
            return F.mse_loss(
                self(scheduler.add_noise(original_samples=z, noise=noise, timesteps=t), t, tokens),
                noise,
            )

        return value


def stand_in(name: str = "torchvision") -> None:
    """An empty module in place of `name`."""
    for part in (name, f"{name}.transforms", f"{name}.utils"):
        sys.modules[part] = MagicMock(__spec__=ModuleSpec(part, None))


def of_lucidrains(s: CLDMSettings, calls: int) -> list[Network]:
    """denoising-diffusion-pytorch: Unet1D in GaussianDiffusion1D."""
    stand_in()
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch_1d as package

    package.tqdm = lambda rounds, **_: rounds  # no progress bar while timing
    unet = package.Unet1D(dim=24, dim_mults=(1, 2, 4), channels=s.channels)
    diffusion = package.GaussianDiffusion1D(
        unet, seq_length=s.positions, sampling_timesteps=50, auto_normalize=False
    )
    peer = Peer(unet, lambda x, t, _: unet(x, t), s, False)
    peer.diffusion = diffusion
    return [
        Network(
            "denoising-diffusion-pytorch Unet1D",
            peer,
            peer.ready,
            lambda z, _: diffusion(z),
            {"DDIM, 50 calls": lambda noise, _: diffusion.sample(batch_size=len(noise))},
            False,
        )
    ]


def of_diffusers(s: CLDMSettings, calls: int) -> list[Network]:
    """diffusers: UNet1DModel, and UNet2DConditionModel on latents of height 1; attention as in their defaults."""
    stand_in()
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        UNet1DModel,
        UNet2DConditionModel,
    )

    widths, across, ways = (
        (32, 48, 64),
        (24, 40, 56),
        ("CrossAttn{}Block2D", "CrossAttn{}Block2D", "{}Block2D"),
    )
    plain = UNet1DModel(
        sample_size=s.positions,
        in_channels=s.channels,
        out_channels=s.channels,
        extra_in_channels=2 * widths[0],
        block_out_channels=widths,
    )
    cross = UNet2DConditionModel(
        sample_size=(1, s.positions), in_channels=s.channels, out_channels=s.channels, block_out_channels=across, layers_per_block=1, norm_num_groups=8,
        down_block_types=tuple(w.format("Down") for w in ways), up_block_types=tuple(w.format("Up") for w in reversed(ways)), cross_attention_dim=s.token, attention_head_dim=4,
    )  # fmt: skip
    peers = {
        "diffusers UNet1DModel": Peer(plain, lambda x, t, _: plain(x, t).sample, s, False),
        "diffusers UNet2DConditionModel, height 1": Peer(
            cross, lambda x, t, tokens: cross(x[:, :, None], t, tokens).sample[:, :, 0], s, True
        ),
    }

    def draw(peer: Peer, scheduler: Any, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
        def latents(noise: Tensor, people: Tensor) -> Tensor:
            scheduler.set_timesteps(steps)
            tokens, x = peer.tokens(people), noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x = scheduler.step(peer(x, t, tokens), t, x).prev_sample
            return x

        return latents

    return [
        Network(
            name, peer, peer.ready, peer.loss(DDPMScheduler()),
            {"DDIM, 50 calls": draw(peer, DDIMScheduler(), 50), "DPM-Solver++ 2M, 20 calls": draw(peer, DPMSolverMultistepScheduler(), 20)},
            peer.conditioner is not None, {f"DPM-Solver++ 2M, {calls} calls": draw(peer, DPMSolverMultistepScheduler(), calls)},
        ) for name, peer in peers.items()
    ]  # fmt: skip


def patch_monai() -> None:
    """One dimension for MONAI, whose residual blocks, transformers and EMA quantiser know two and three."""
    from monai.networks.nets import diffusion_model_unet as nets
    from monai.networks.nets import vqvae

    def block(self: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        h = self.nonlinearity(self.norm1(x))
        for resize in (self.upsample, self.downsample):
            x, h = (x, h) if resize is None else (resize(x), resize(h))
        h = self.conv1(h) + self.time_emb_proj(self.nonlinearity(emb))[:, :, None]
        return self.skip_connection(x) + self.conv2(self.nonlinearity(self.norm2(h)))

    def transformer(self: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.proj_in(self.norm(x)).transpose(1, 2)
        for layer in self.transformer_blocks:
            h = layer(h, context=context)
        return x + self.proj_out(h.transpose(1, 2).contiguous())

    class Quantiser(vqvae.EMAQuantizer):
        def __init__(self, spatial_dims: int, **settings: Any):
            super().__init__(spatial_dims=2, **settings)
            self.flatten_permutation = self.quantization_permutation = [0, 2, 1]

    nets.DiffusionUNetResnetBlock.forward, nets.SpatialTransformer.forward = block, transformer
    if vqvae.EMAQuantizer.__name__ != "Quantiser":
        vqvae.EMAQuantizer = Quantiser


def of_monai(s: CLDMSettings, calls: int) -> list[Network]:
    """MONAI: DiffusionModelUNet with spatial_dims=1 (patched), cross-attention at the two lower levels."""
    from monai.inferers import DiffusionInferer
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

    patch_monai()
    unet = DiffusionModelUNet(
        spatial_dims=1, in_channels=s.channels, out_channels=s.channels, num_res_blocks=1, channels=(32, 48, 64), attention_levels=(False, True, True),
        norm_num_groups=8, num_head_channels=8, with_conditioning=True, cross_attention_dim=s.token,
    )  # fmt: skip
    peer, scheduler = (
        Peer(unet, lambda x, t, tokens: unet(x, t, tokens), s, True),
        DDIMScheduler(num_train_timesteps=1000),
    )

    def draw(noise: Tensor, people: Tensor) -> Tensor:
        scheduler.set_timesteps(50)
        return DiffusionInferer(scheduler).sample(
            noise, unet, scheduler, conditioning=peer.tokens(people), verbose=False
        )

    return [
        Network(
            "MONAI DiffusionModelUNet (patched for 1-D)",
            peer,
            peer.ready,
            peer.loss(DDPMScheduler(num_train_timesteps=1000)),
            {"DDIM, 50 calls": draw},
        )
    ]


class Residual(nn.Module):
    """x + conv(GELU(conv(GELU(norm(x)))))."""

    def __init__(self, width: int):
        super().__init__()
        conv = lambda: nn.Conv1d(width, width, 3, padding=1)
        self.net = nn.Sequential(nn.GroupNorm(8, width), nn.GELU(), conv(), nn.GELU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class PlainCodec(nn.Module):
    """A convolutional codec of the same strides, 512 bins to 32 positions in one step of 16, around a quantiser."""

    def __init__(
        self,
        quantiser: nn.Module,
        width: int = 128,
        blocks: int = 2,
        dim: int = 8,
        stride: int = 16,
    ):
        super().__init__()
        middle = lambda: [Residual(width) for _ in range(blocks)]
        self.encoder = nn.Sequential(
            nn.Conv1d(1, width, stride, stride=stride), *middle(), nn.Conv1d(width, dim, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(dim, width, 1), *middle(), nn.ConvTranspose1d(width, 1, stride, stride=stride)
        )
        self.quantiser = quantiser
        self.values = (
            quantiser.indices_to_codes
            if hasattr(quantiser, "indices_to_codes")
            else quantiser.get_output_from_indices
        )

    def encode(self, flow: Tensor) -> Tensor:
        return self.quantiser(self.encoder(flow[:, None]).transpose(1, 2))[1]

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.values(codes).transpose(1, 2))[:, 0]

    def loss(self, flow: Tensor) -> Tensor:
        values, _, *commitment = self.quantiser(self.encoder(flow[:, None]).transpose(1, 2))
        return F.l1_loss(self.decoder(values.transpose(1, 2))[:, 0], flow) + sum(
            c.sum() for c in commitment
        )


def of_vector_quantize(device: str) -> list[Codec]:
    """vector-quantize-pytorch: three quantisers of 8 dimensions in a plain codec."""
    from vector_quantize_pytorch import FSQ, ResidualVQ, VectorQuantize

    z, made = torch.randn(128, 32, 8, device=device), {
        "VectorQuantize (EMA), 512 codes": VectorQuantize(dim=8, codebook_size=512, decay=0.99),
        "FSQ, 8 x 8 x 8 levels": FSQ(levels=[8, 8, 8], dim=8),
        "ResidualVQ, 2 x 512 codes": ResidualVQ(dim=8, num_quantizers=2, codebook_size=512),
    }  # fmt: skip
    codecs = {f"vector-quantize-pytorch {k}": PlainCodec(q).to(device) for k, q in made.items()}
    return [
        Codec(k, c, c.encode, c.decode, c.loss, lambda c=c: c.quantiser(z))
        for k, c in codecs.items()
    ]


def of_monai_vqvae(device: str) -> list[Codec]:
    """MONAI: VQVAE with spatial_dims=1 (patched), two strides of 4."""
    from monai.networks.nets import VQVAE as MonaiVQVAE

    patch_monai()
    net = MonaiVQVAE(
        spatial_dims=1, in_channels=1, out_channels=1, channels=(96, 96), num_res_layers=1, num_res_channels=(96, 96), num_embeddings=512, embedding_dim=8,
        downsample_parameters=((4, 8, 1, 2),) * 2, upsample_parameters=((4, 8, 1, 2, 0),) * 2,
    ).to(device)  # fmt: skip
    z = torch.randn(128, 8, 32, device=device)

    def loss(flow: Tensor) -> Tensor:
        made, quantisation = net(flow[:, None])
        return F.l1_loss(made, flow[:, None]) + quantisation

    return [
        Codec(
            "MONAI VQVAE (patched for 1-D)",
            net,
            lambda flow: net.index_quantize(flow[:, None]),
            lambda codes: net.decode_samples(codes)[:, 0],
            loss,
            lambda: net.quantizer(z),
        )
    ]


NETWORKS = {
    "denoising-diffusion-pytorch": of_lucidrains,
    "diffusers": of_diffusers,
    "monai": of_monai,
}
CODECS = {"vector-quantize-pytorch": of_vector_quantize, "monai": of_monai_vqvae}
