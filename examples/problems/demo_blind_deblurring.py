r"""
Blind deblurring
================

A photograph is blurred by an unknown kernel. DMILO :footcite:p:`zheng2025dmilo` estimates the kernel together with the
image: for each image that the latent gives, it first solves for the kernel that fits the measurements best.
"""

# %%
# The measurements
# ----------------
#
# The truth is used for the simulation and for the PSNR only. The reconstruction starts from a Gaussian kernel that is
# too wide.

import deepinv as dinv
import torch
from deepinv.physics.functional import gaussian_blur
from deepinv.utils import plot

from deepinv_dmilo import DMILO, DiffusionPrior, Simplex
from deepinv_dmilo.priors.pretrained import held_out_images

prior = DiffusionPrior.from_pretrained("photos")
x = held_out_images("photos")[13:14, :, 32:96, 32:96]
noise = dinv.physics.GaussianNoise(0.005, rng=torch.Generator().manual_seed(0))


def blur(kernel):
    """A physics that blurs by a kernel."""
    return dinv.physics.BlurFFT((3, 64, 64), filter=kernel, noise_model=noise)


kernel = dinv.physics.generator.MotionBlurGenerator((15, 15), rng=torch.Generator().manual_seed(1)).step()["filter"]
guess = gaussian_blur(sigma=(2.0, 2.0))  # 15 x 15
y = blur(kernel)(x)

# %%
# Image and kernel
# ----------------

wrong = DMILO(prior, max_passes=25)(y, blur(guess))
blind, found = DMILO(prior, unknown={"filter": Simplex(guess)})(y, blur(guess), return_unknown=True)
known = DMILO(prior)(y, blur(kernel))

psnr = dinv.metric.PSNR()
images = {"measurements": y, "guess fixed": wrong, "blind": blind, "true kernel": known, "original": x}
for name, image in list(images.items())[:-1]:
    print(f"{name:14} {psnr(image.clamp(0, 1), x).item():.2f} dB")
plot(images, rescale_mode="clip", figsize=(10, 2.6), dpi=110, fontsize=9)
plot({"guess": guess, "found": found["filter"], "true": kernel}, figsize=(6, 2.4), dpi=110, fontsize=9)

# %%
# An unknown gain or blur width works the same way: ``unknown={"gain": Positive(torch.ones(1, 1, 1, 1))}``.
#
# .. footbibliography::
