r"""
Denoising, and the role of the noise level
==========================================

The simplest physics, the identity, shows how DMILO :footcite:p:`zheng2025dmilo` uses the noise level: it determines how
closely the measurements are fitted. The example also shows when not to use DMILO: a diffusion network is a denoiser, so
one call of it is enough for this problem.
"""

# %%
# Noisy digits
# ------------

import deepinv as dinv
import torch
from deepinv.utils import plot

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

prior = DiffusionPrior.from_pretrained("digits")
x = held_out_images("digits")[4:6]
levels = (0.02, 0.05, 0.1, 0.2)
psnr = dinv.metric.PSNR()


def denoising(sigma):
    """The identity with Gaussian noise."""
    return dinv.physics.Denoising(dinv.physics.GaussianNoise(sigma, rng=torch.Generator().manual_seed(0)))


# %%
# DMILO compared with one call of the network
# -------------------------------------------
#
# ``prior.denoiser()`` is the network as a deepinv denoiser: one call estimates the posterior mean of the clean image.
# DMILO searches for the most probable latent instead, in up to 100 passes.

model = DMILO(prior, max_passes=100)
denoiser = prior.denoiser()
images = {}
print(f"{'noise':>6} {'noisy':>8} {'denoiser':>10} {'DMILO':>8}   PSNR (dB)")
for sigma in levels:
    physics = denoising(sigma)
    y = physics(x)
    with torch.no_grad():
        images[sigma] = {"noisy": y, "denoiser": denoiser(y, sigma).clamp(0, 1), "DMILO": model(y, physics)}
    values = {name: psnr(image, x).mean().item() for name, image in images[sigma].items()}
    print(f"{sigma:6} {values['noisy']:8.2f} {values['denoiser']:10.2f} {values['DMILO']:8.2f}")

# %%
# At noise 0.2:

plot({**images[0.2], "ground truth": x}, rescale_mode="clip", figsize=(7, 4), dpi=100, fontsize=9)

# %%
# Where the noise level comes from
# --------------------------------
#
# By default DMILO simulates the noise model of the physics. If the physics has none, DMILO estimates the noise level
# from the residual of the current image and by the network. ``noise_level=`` overrides both: use it for your own
# pictures if you know their noise. The table compares them on the same measurements, and shows the loss by a wrong
# level.

sigma = 0.1
y = images[sigma]["noisy"]
silent = dinv.physics.Denoising(dinv.physics.ZeroNoise())
runs = {
    "noise model of the physics": model(y, denoising(sigma)),
    "no noise level": model(y, silent),
    "noise_level=0.1": DMILO(prior, max_passes=100, noise_level=sigma)(y, silent),
    "noise_level=0.02, too low": DMILO(prior, max_passes=100, noise_level=sigma / 5)(y, silent),
    "noise_level=0.5, too high": DMILO(prior, max_passes=100, noise_level=sigma * 5)(y, silent),
}
print(f"{'':28} {'PSNR (dB)':>10} {'residual':>10}")
for name, image in runs.items():
    residual = (image - y).square().mean().sqrt().item()
    print(f"{name:28} {psnr(image, x).mean().item():10.2f} {residual:10.3f}")

# %%
# The residual of a good reconstruction is near the true noise level, 0.1; a level that is too low makes DMILO fit the
# noise.

names = {"noisy": y, "right": runs["noise_level=0.1"], "too low": runs["noise_level=0.02, too low"]}
names |= {"too high": runs["noise_level=0.5, too high"], "ground truth": x}
plot(names, rescale_mode="clip", figsize=(8, 4), dpi=100, fontsize=9)

# %%
# Summary
# -------

right = psnr(runs["noise_level=0.1"], x).mean().item()
for name, image in runs.items():
    print(f"{name}: {psnr(image, x).mean().item() - right:+.2f} dB from the right level")
for sigma in levels:
    difference = (psnr(images[sigma]["DMILO"], x) - psnr(images[sigma]["denoiser"], x)).mean().item()
    print(f"noise {sigma}: DMILO is {difference:+.2f} dB from one call of the denoiser")

# %%
# For plain denoising take the denoiser: it is one call. DMILO is for operators that it cannot undo.
#
# .. footbibliography::
