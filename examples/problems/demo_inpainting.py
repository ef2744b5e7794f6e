r"""
Inpainting, with a map of the uncertainty
=========================================

There are two masks: seventy per cent of the pixels hidden at random, and a box in the middle. DMILO
:footcite:p:`zheng2025dmilo` reconstructs one image for each. :class:`DMILOSampler <deepinv_dmilo.DMILOSampler>` draws
samples of the posterior. It returns their mean, and their standard deviation as a map of the uncertainty.
"""

# %%
# Two masks
# ---------

import deepinv as dinv
import torch
from deepinv.utils import plot

from deepinv_dmilo import DMILO, DiffusionPrior, DMILOSampler
from deepinv_dmilo.priors.pretrained import held_out_images

prior = DiffusionPrior.from_pretrained("digits")
x = held_out_images("digits")[[3, 14]]
shape = tuple(x.shape[1:])

box = torch.ones(shape)
box[:, 10:20, 11:21] = 0
random = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3).float()
problems = {
    name: dinv.physics.Inpainting(
        shape,
        mask=mask,
        noise_model=dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0)),
    )
    for name, mask in {"random": random, "box": box}.items()
}

# %%
# One image, and six samples
# --------------------------
#
# The samples of an image share its budget: 240 calls of the network are 40 for each sample, over eight noise levels.

single = DMILO(prior, max_passes=25)
sampler = DMILOSampler(prior, num_samples=6, max_calls=6 * 40)
psnr = dinv.metric.PSNR()
results = {}
print(f"{'mask':8} {'DMILO':>8} {'one sample':>12} {'mean of 6':>12}   PSNR (dB)")
for name, physics in problems.items():
    y = physics(x)
    one = single(y, physics)
    mean, std, samples = sampler(y, physics, return_std=True, return_samples=True)
    results[name] = (y, one, mean, std, samples)
    values = [psnr(image, x).mean().item() for image in (one, samples[:, 0], mean)]
    print(f"{name:8} {values[0]:8.2f} {values[1]:12.2f} {values[2]:12.2f}")

# %%
# Seventy per cent hidden at random
# ---------------------------------
#
# Each map of the standard deviation has its own grey scale, where black is zero. The error has the same scale, so that
# the two can be compared.


def show(name):
    """Plot measurements, reconstruction, samples, their mean, map, error and truth."""
    y, one, mean, std, samples = results[name]
    columns = {
        "measurements": y,
        "DMILO": one,
        **{f"sample {i + 1}": samples[:, i] for i in range(3)},
        "mean of 6": mean,
    }
    columns |= {"standard\ndeviation": std / std.amax(), "error of\nthe mean": (mean - x).abs() / std.amax()}
    plot({**columns, "ground truth": x}, rescale_mode="clip", figsize=(12, 3), dpi=100, fontsize=9)


show("random")

# %%
# A box hidden in the middle
# --------------------------
#
# Here the prior has to generate the content of the box, and the samples differ.

show("box")

# %%
# Does the map show where the errors are?
# ---------------------------------------
#
# The table has the correlation over the pixels between the map and the absolute error, and the mean of the map over
# hidden and over known pixels.

for name, physics in problems.items():
    _, _, mean, std, _ = results[name]
    error = (mean - x).abs()
    correlation = torch.corrcoef(torch.stack([std.flatten(), error.flatten()]))[0, 1].item()
    hidden = (physics.mask == 0).expand_as(std)
    print(
        f"{name:8} correlation {correlation:.2f}; standard deviation {std[hidden].mean().item():.3f} where hidden, "
        f"{std[~hidden].mean().item():.3f} where known"
    )

# %%
# Is the size of the standard deviation right, too? If the truth is a draw from the distribution of the samples, the
# error of the mean of S samples has :math:`1 + 1 / S` times their variance. The printed ratio of the two root mean
# squares is then near 1. Two images are few; :doc:`/calibration` has more.

for name, physics in problems.items():
    _, _, mean, std, samples = results[name]
    hidden = (physics.mask == 0).expand_as(std)
    ratio = ((mean - x)[hidden].square().mean() / std[hidden].square().mean() / (1 + 1 / samples.shape[1])).sqrt()
    print(f"{name:8} error / standard deviation = {ratio.item():.2f} where hidden")

# %%
# Summary
# -------
#
# DMILO is made for one good image, and the samples show where it may be wrong. The mean of the samples is blurred where
# they differ. A single sample is sharp, but only one of many possible images.

for name in problems:
    _, one, mean, _, samples = results[name]
    gains = [(psnr(mean, x) - psnr(image, x)).mean().item() for image in (one, samples[:, 0])]
    print(f"{name}: the mean of 6 is {gains[0]:+.2f} dB from DMILO and {gains[1]:+.2f} dB from one sample")

# %%
# .. footbibliography::
