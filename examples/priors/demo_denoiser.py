r"""
A deepinv denoiser as the prior
===============================

Any deepinv denoiser with a network is a prior: ``DMILO(dinv.models.DRUNet())`` is all that is to be typed. It was
trained up to some noise, and the levels start there, so that what it cannot do is to invent what is hidden: a diffusion
model was shown more noise than image. This example takes one network and tells the method that it is a denoiser up to
0.2, as DRUNet is, then up to 5, as a diffusion model is.
"""

# %%
# A denoiser
# ----------
#
# With access to its weights, take ``dinv.models.DRUNet()``. Here it is the network of the bundled prior, which has the
# same interface.

import deepinv as dinv
import torch
from deepinv.utils import plot

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

denoiser = DiffusionPrior.from_pretrained("photos").denoiser()
x = held_out_images("photos")[6:7, :, 64:192, 64:192]
noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
print(isinstance(denoiser, dinv.models.Denoiser), f"{dinv.metric.PSNR()(denoiser(noisy, 0.1), x).item():.2f} dB")

# %%
# Two operators
# -------------
#
# A blur, which hides detail, and a mask of 80 % of the pixels, which hides more.

noise = dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(0))
kernel = dinv.physics.functional.blur.gaussian_blur(sigma=1.5)
operators = {
    "blur": dinv.physics.BlurFFT((3, 128, 128), filter=kernel, noise_model=noise),
    "80 % missing": dinv.physics.Inpainting(
        (3, 128, 128), mask=0.2, noise_model=noise, rng=torch.Generator().manual_seed(0)
    ),
}

# %%
# Reconstruction
# --------------
#
# ``max_noise`` is the largest noise, for images in [0, 1], that the denoiser is told to be good at.

psnr = dinv.metric.PSNR()
for name, physics in operators.items():
    y = physics(x)
    images = {"measurements": y}
    for max_noise in (0.2, 5.0):
        prior = DiffusionPrior.from_denoiser(denoiser, max_noise=max_noise)
        images[f"up to {max_noise}"] = DMILO(prior, max_passes=25)(y, physics)
        print(f"{name:13} up to {max_noise}: {psnr(images[f'up to {max_noise}'], x).item():6.2f} dB")
    plot({**images, "ground truth": x}, rescale_mode="clip", figsize=(7, 2.2), dpi=100, fontsize=9)

# %%
# Where the measurements determine most of the image, levels above 0.2 are not taken in any case
# (:doc:`/method`), and a denoiser is as good a prior as a diffusion model of the same images. Where much is hidden, it
# pays to have been trained on more noise.
