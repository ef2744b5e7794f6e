r"""
Super-resolution
================

The measurements have four times fewer pixels in height and width, by bicubic downsampling, and a little noise. The
example shows what DMILO :footcite:p:`zheng2025dmilo` reconstructs with a diffusion prior, and how much of the gain a
short run gives.
"""

# %%
# Prior, physics, measurements
# ----------------------------
#
# The photograph is held out: the prior was not trained on it. Images are in [0, 1], as everywhere in deepinv.

import deepinv as dinv
import torch
from deepinv.utils import plot
from torchvision.transforms.functional import resize

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior, DMILOSampler
from deepinv_dmilo.priors.pretrained import held_out_images

prior = DiffusionPrior.from_pretrained("photos")
x = resize(held_out_images("photos")[[6]], [64, 64], antialias=True).clamp(0, 1)

physics = dinv.physics.Downsampling(
    img_size=tuple(x.shape[1:]),
    filter="bicubic",
    factor=4,
    noise_model=dinv.physics.GaussianNoise(0.005, rng=torch.Generator().manual_seed(0)),
)
y = physics(x)
print(f"from {tuple(y.shape[1:])} to {tuple(x.shape[1:])}")

# %%
# Reconstruction
# --------------
#
# ``max_passes`` is an upper bound of the forward and backward passes of the network for each image. An image that
# converges early takes fewer.

methods = {
    "DMILO, 10 passes": DMILO(prior, max_passes=10),
    "DMILO, 25 passes": DMILO(prior, max_passes=25),
    "DMILO-PGD, 25 passes": DMILOPGD(prior, max_passes=25),
}
images = {"pseudo-inverse": physics.A_dagger(y).clamp(0, 1)}
used = {"pseudo-inverse": 0.0}
for name, model in methods.items():
    images[name], metrics = model(y, physics, compute_metrics=True)
    used[name] = sum(passes[-1] for passes in metrics["passes"]) / len(x)

# %%
# How good are they?
# ------------------
#
# PSNR needs the ground truth, which the methods do not get. The residual does not need it: if it is near the noise
# level, 0.005, the image explains the measurements and does not fit their noise.

psnr = dinv.metric.PSNR()
print(f"{'':22} {'PSNR (dB)':>10} {'residual':>10} {'passes':>8}")
for name, x_hat in images.items():
    residual = (physics.A(x_hat) - y).square().mean().sqrt().item()
    print(f"{name:22} {psnr(x_hat, x).mean().item():10.2f} {residual:10.4f} {used[name]:8.0f}")

# %%
# The images
# ----------

shown = {"measurements": y, **images, "ground truth": x}
plot(
    {name.replace(", ", "\n"): image for name, image in shown.items()},
    rescale_mode="clip",
    figsize=(12, 2.6),
    dpi=100,
    fontsize=9,
)

# %%
# How uncertain is the image?
# ---------------------------
#
# An image of 16 x 16 pixels does not determine one of 64 x 64. :class:`DMILOSampler <deepinv_dmilo.DMILOSampler>` draws
# images that all agree with y. The error has the grey scale of the standard deviation.

sampler = DMILOSampler(prior, num_samples=4, max_calls=4 * 40)
mean, std, samples = sampler(y, physics, return_std=True, return_samples=True)
spread, error = std.square().mean().sqrt().item(), (mean - x).square().mean().sqrt().item()
columns = {f"sample {i + 1}": samples[:, i] for i in range(3)} | {"mean of 4": mean}
columns |= {"standard\ndeviation": std / std.amax(), "error of\nthe mean": (mean - x).abs() / std.amax()}
plot({**columns, "ground truth": x}, rescale_mode="clip", figsize=(11, 2.2), dpi=100, fontsize=9)

# %%
# Summary
# -------

gain = (psnr(images["DMILO, 25 passes"], x) - psnr(images["pseudo-inverse"], x)).mean().item()
share = (psnr(images["DMILO, 10 passes"], x) - psnr(images["pseudo-inverse"], x)).mean().item() / gain
print(f"At 25 passes DMILO is {gain:.1f} dB above the pseudo-inverse; 10 passes give {100 * share:.0f} % of that.")
print(f"Samples have a standard deviation of {spread:.3f}, and their mean an error of {error:.3f} (root mean squares).")
residual = (physics.A(samples[0]) - y).square().mean().sqrt().item()
print(f"Downsampled, the samples are {residual:.4f} from y, whose noise is 0.005.")

# %%
# All samples explain y. They differ in the fine texture, which y does not determine: do not trust it in a single
# sample. :ref:`sphx_glr_auto_examples_problems_demo_can_i_trust_this_detail.py` tests single details.
#
# .. footbibliography::
