r"""
Inpainting, with a map of what is uncertain
===========================================

Two masks: seventy per cent of the pixels hidden at random, and a box in the middle. With ``num_samples`` DMILO
:footcite:p:`zheng2025dmilo` makes several reconstructions of each image from different noise; their mean is returned,
and on request their standard deviation, a map of where they disagree.
"""

# %%
# Two masks
# ---------

import deepinv as dinv
import torch
from deepinv.utils import plot
from torchvision.transforms.functional import resize

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

prior = DiffusionPrior.from_pretrained("photos")
x = resize(held_out_images("photos")[[2]], [128, 128], antialias=True).clamp(0, 1)
shape = tuple(x.shape[1:])
noise_level = 0.005

box = torch.ones(shape)
box[:, 40:72, 48:80] = 0
random = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3).float()
problems = {
    name: dinv.physics.Inpainting(
        shape,
        mask=mask,
        noise_model=dinv.physics.GaussianNoise(noise_level, rng=torch.Generator().manual_seed(0)),
    )
    for name, mask in {"random": random, "box": box}.items()
}

# %%
# Four samples of each image
# --------------------------
#
# The samples of an image share its budget: 100 passes are 25 for each. They go through the network in one batch;
# ``micro_batch`` would bound how many at once.

model = DMILO(prior, num_samples=4, max_passes=100)
single = DMILO(prior, max_passes=25)
psnr = dinv.metric.PSNR()
results = {}
print(f"{'mask':8} {'measurements':>14} {'one sample':>12} {'mean of 4':>12}   PSNR (dB)")
for name, physics in problems.items():
    y = physics(x)
    mean, std = model(y, physics, return_std=True)
    one = single(y, physics)
    results[name] = (y, one, mean, std)
    values = [psnr(image, x).mean().item() for image in (y, one, mean)]
    print(f"{name:8} {values[0]:14.2f} {values[1]:12.2f} {values[2]:12.2f}")

# %%
# Seventy per cent hidden at random
# ---------------------------------
#
# Each map has its own grey scale, black for no disagreement.


def show(name):
    """Measurements, reconstructions, map and truth beside one another."""
    y, one, mean, std = results[name]
    columns = {"measurements": y, "one sample": one, "mean of 4": mean, "standard\ndeviation": std / std.amax()}
    columns |= {"error of\nthe mean": (mean - x).abs(), "ground truth": x}
    plot(columns, rescale_mode="clip", figsize=(11, 2.6), dpi=100, fontsize=9)


show("random")

# %%
# A box hidden in the middle
# --------------------------
#
# Here the prior has to invent what the box hides, and the samples differ.

show("box")

# %%
# Does the map tell where the errors are?
# ---------------------------------------
#
# The correlation over the pixels between the map and the size of the error, and the mean of the map where the pixels
# are hidden and where they are known.

for name, physics in problems.items():
    _, _, mean, std = results[name]
    error = (mean - x).abs()
    correlation = torch.corrcoef(torch.stack([std.flatten(), error.flatten()]))[0, 1].item()
    hidden = (physics.mask == 0).expand_as(std)
    print(
        f"{name:8} correlation {correlation:.2f}; standard deviation {std[hidden].mean().item():.3f} where hidden, "
        f"{std[~hidden].mean().item():.3f} where known"
    )

# %%
# And is its size right? Were the map a calibrated standard deviation, the root mean square of the error over the
# standard deviation, where pixels are hidden, would be near 1.

for name, physics in problems.items():
    _, _, mean, std = results[name]
    hidden = (physics.mask == 0).expand_as(std)
    ratio = ((mean - x)[hidden].square().mean() / std[hidden].square().mean()).sqrt().item()
    print(f"{name:8} error / standard deviation = {ratio:.2f} where hidden")

# %%
# What you saw
# ------------
#
# The mean of several samples is compared with one of them in the first table. The map is large where pixels are
# hidden, and it says where to expect errors; the last figures say by how much it is off as an error bar. The samples
# are maximum a posteriori estimates from different noise, not draws from the posterior, so treat the map as a hint.

for name in problems:
    _, one, mean, _ = results[name]
    print(f"{name}: the mean of 4 changes the PSNR by {(psnr(mean, x) - psnr(one, x)).mean().item():+.2f} dB")

# %%
# .. footbibliography::
