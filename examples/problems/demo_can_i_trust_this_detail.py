r"""
Can I trust this detail?
========================

A diffusion prior adds sharp detail, also where nothing was measured. Posterior samples show which details the
measurements support: these are in all samples. Uncertain details are in some samples and not in others.
"""

# %%
# A digit with its top hidden
# ---------------------------
#
# Half of the pixels are masked at random, and all pixels of a box. The tail of the digit is measured in part. The
# stroke that closes its top is in the box: nothing of it is measured.

import deepinv as dinv
import torch
from deepinv.utils import plot

from deepinv_dmilo import DMILO, DiffusionPrior, DMILOSampler
from deepinv_dmilo.priors.pretrained import held_out_images

prior = DiffusionPrior.from_pretrained("digits")
x = held_out_images("digits")[:1]
mask = (torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5).float()
box = torch.zeros_like(mask)
box[:, 8:13, 12:22] = 1
noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
physics = dinv.physics.Inpainting(tuple(x.shape[1:]), mask=mask * (1 - box), noise_model=noise)
y = physics(x)

# %%
# One reconstruction
# ------------------
#
# DMILO returns one image. It is sharp everywhere, and does not show what was measured and what was not.

one = DMILO(prior, max_passes=25)(y, physics)
plot({"measurements": y, "DMILO": one}, rescale_mode="clip", figsize=(4, 2.2), dpi=100)

# %%
# Twelve samples
# --------------
#
# Each is an image that agrees with these measurements. Eight of ten samples lie between the quantiles 0.1 and 0.9 of a
# pixel.

model = DMILOSampler(prior, num_samples=12, max_calls=12 * 40)
mean, std, quantiles, samples = model(y, physics, return_std=True, quantiles=(0.1, 0.9), return_samples=True)
plot({f"sample {i + 1}": samples[:, i] for i in range(6)}, rescale_mode="clip", figsize=(9, 1.9), dpi=100)
maps = {"mean": mean, "standard\ndeviation": std / std.max()}
maps |= {"quantile 0.1": quantiles[:, 0], "quantile 0.9": quantiles[:, 1], "ground truth": x}
plot(maps, rescale_mode="clip", figsize=(8, 2.1), dpi=100)

# %%
# Two details
# -----------
#
# Both details are strokes. A stroke is present if it is nowhere dark: its brightness is the brightest pixel across the
# stroke, at the darkest point along it.


def brightness(images, rows, columns, across):
    """The brightness of a stroke in images (..., H, W), at its darkest point."""
    return images[..., rows, columns].amax(across).amin(-1).flatten()


details = {
    "the tail": (slice(19, 26), slice(14, 20), -1),
    "the stroke at the top": (slice(8, 12), slice(15, 19), -2),
}
print(f"{'':22} {'DMILO':>6} {'samples':>8} {'standard deviation':>19} {'have it':>8} {'truth':>6}")
found = {}
for name, place in details.items():
    of_samples = brightness(samples, *place)
    found[name] = (of_samples > 0.5).sum().item()
    values = f"{brightness(one, *place).item():6.2f} {of_samples.mean().item():8.2f} {of_samples.std().item():19.2f}"
    print(f"{name:22} {values} {found[name]:5}/{len(of_samples)} {brightness(x, *place).item():6.2f}")

# %%
# Summary
# -------
#
# A masked pixel need not be uncertain. About half of the tail is masked, too, but the measured pixels around it
# determine it well.

hidden = physics.mask[0] == 0
inside, outside = (std[0][hidden & here].mean().item() for here in (box > 0, box == 0))
print(f"Standard deviation of hidden pixels: {inside:.3f} in the box, {outside:.3f} elsewhere.")
count = samples.shape[1]
for name, place in details.items():
    is_there = brightness(one, *place).item() > 0.5
    agree = found[name] if is_there else count - found[name]
    verdict = "trust that" if agree == count else "do not trust that, the measurements do not determine it"
    print(f"DMILO {'shows' if is_there else 'leaves out'} {name}, as do {agree} of {count} samples: {verdict}.")

# %%
# With twelve samples the standard deviation of such a share is about 0.14. The samples depend on the prior: this one
# knows digits only, so on other images the samples are overconfident. :doc:`/calibration` has the measured coverage.
