r"""
A deepinv denoiser as the prior
===============================

Any deepinv denoiser with a network can be the prior: type ``DMILO(dinv.models.DRUNet())``. A denoiser is trained up to
some noise level, and the levels start there. So it cannot generate hidden content, while a diffusion model, which is
trained up to pure noise, can. This example trains a small DRUNet for half a minute, in place of a denoiser that you
have, and compares it with the diffusion model of the same digits.
"""

# %%
# A denoiser
# ----------
#
# With access to deepinv's weights, take ``dinv.models.DRUNet()``, trained on photographs up to a noise of 0.2.

import deepinv as dinv
import torch
from deepinv.utils import plot

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

STEPS, MAX_NOISE = 400, 0.5
digits = held_out_images("digits")
x, train = digits[:4], digits[8:248]
torch.manual_seed(0)
denoiser = dinv.models.DRUNet(in_channels=1, out_channels=1, nc=(16, 32, 64, 64), nb=1, pretrained=None)
optimizer = torch.optim.Adam(denoiser.parameters())
rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
for _ in range(STEPS):
    clean = train[torch.randint(len(train), (32,))]
    sigma = MAX_NOISE * torch.rand(32)
    noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
    loss = (denoiser(noisy, sigma) - clean).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rates.step()
denoiser.eval()

# %%
# Two priors
# ----------
#
# ``max_noise`` is the largest noise level, for images in [0, 1], for which the denoiser is used.

priors = {
    "DRUNet": DiffusionPrior.from_denoiser(denoiser, max_noise=MAX_NOISE),
    "diffusion model": DiffusionPrior.from_pretrained("digits"),
}
psnr = dinv.metric.PSNR()
noisy = x + 0.1 * torch.randn_like(x)
for name, prior in priors.items():
    with torch.no_grad():
        print(f"{name}, as a denoiser at noise 0.1: {psnr(prior.denoiser()(noisy, 0.1), x).mean().item():.2f} dB")

# %%
# Reconstruction
# --------------
#
# The two problems are a blur, which removes detail, and a mask of 60 % of the pixels, which removes more.

noise = dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(0))
kernel = dinv.physics.functional.blur.gaussian_blur(sigma=1.5)
operators = {
    "blur": dinv.physics.BlurFFT((1, 32, 32), filter=kernel, noise_model=noise),
    "60 % missing": dinv.physics.Inpainting(
        (1, 32, 32), mask=0.4, noise_model=noise, rng=torch.Generator().manual_seed(0)
    ),
}
for name, physics in operators.items():
    y = physics(x)
    images = {"measurements": y}
    for title, prior in priors.items():
        images[title] = DMILO(prior, max_passes=25)(y, physics)
        print(f"{name:13} {title:16} {psnr(images[title], x).mean().item():6.2f} dB")
    plot({**images, "ground truth": x}, rescale_mode="clip", figsize=(6, 6), dpi=100, fontsize=9)

# %%
# The better denoiser is the better prior. The levels of the DRUNet start at the largest noise level of its training. If
# the measurements determine most of the image, higher levels are not needed in any case (:doc:`/method`).
