r"""
Compressed sensing
==================

The measurements are random projections of the whole image, far fewer than it has pixels: a list of numbers, not a
picture. DMILO :footcite:p:`zheng2025dmilo` works on them without change.
"""

# %%
# One operator for each number of measurements
# --------------------------------------------

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from deepinv.optim import ADMM, L2, TVPrior
from deepinv.utils import plot

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

prior = DiffusionPrior.from_pretrained("digits")
x = held_out_images("digits")[:4]
pixels = x[0].numel()
ratios = (0.02, 0.05, 0.1, 0.2)


def sensing(ratio):
    """The physics with a fraction of measurements per pixel."""
    return dinv.physics.CompressedSensing(
        m=round(ratio * pixels),
        img_size=tuple(x.shape[1:]),
        rng=torch.Generator().manual_seed(1),
        noise_model=dinv.physics.GaussianNoise(0.005, rng=torch.Generator().manual_seed(0)),
    )


problems = {ratio: sensing(ratio) for ratio in ratios}
for ratio, physics in problems.items():
    print(f"{ratio:.0%}: {physics.A(x).shape[1]} measurements of {pixels} pixels")

# %%
# Three reconstructions
# ---------------------
#
# The pseudo-inverse has no prior. Total variation assumes piecewise smooth images; its weight is the best of three on
# these same images, which is in its favour. DMILO runs at its defaults, and gets only the physics.


def total_variation(y, physics, weight):
    """Reconstruction with total variation, by ADMM."""
    model = ADMM(prior=TVPrior(n_it_max=20), data_fidelity=L2(), lambda_reg=weight, stepsize=100, max_iter=200)
    return model(y, physics).clamp(0, 1)


psnr = dinv.metric.PSNR()
model = DMILO(prior, max_passes=100)
images, table = {}, {"pseudo-inverse": [], "total variation": [], "DMILO": []}
for ratio, physics in problems.items():
    y = physics(x)
    candidates = [total_variation(y, physics, weight) for weight in (1e-3, 3e-3, 1e-2)]
    images[ratio] = {
        "pseudo-inverse": physics.A_dagger(y).clamp(0, 1),
        "total variation": max(candidates, key=lambda image: psnr(image, x).mean().item()),
        "DMILO": model(y, physics),
    }
    for name, image in images[ratio].items():
        table[name].append(psnr(image, x).mean().item())

print(f"{'measurements':16}" + "".join(f"{ratio:>9.0%}" for ratio in ratios))
for name, values in table.items():
    print(f"{name:16}" + "".join(f"{value:9.2f}" for value in values) + "  dB")

# %%
# The images at 5 %
# -----------------

plot({**images[0.05], "ground truth": x}, rescale_mode="clip", figsize=(7, 7), dpi=100, fontsize=9)

# %%
# PSNR against the number of measurements
# ---------------------------------------

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, values in table.items():
    axes.plot([100 * ratio for ratio in ratios], values, marker="o", label=name)
axes.set(xlabel="measurements, % of the pixels", ylabel="PSNR (dB)")
axes.legend()
plt.show()

# %%
# Summary
# -------

for i, ratio in enumerate(ratios):
    print(f"at {ratio:.0%}, DMILO is {table['DMILO'][i] - table['total variation'][i]:+.1f} dB from total variation")

# %%
# The prior of digits knows far more about these images than total variation does. So the comparison shows the gain by a
# good prior, not which algorithm is better. With the fewest measurements even this prior has to guess.
#
# .. footbibliography::
