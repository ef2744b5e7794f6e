r"""
What sparse deviations buy
==========================

Reconstructs images that the prior cannot make, digits with a grey square, inverted and rotated digits, with DMILO:
without deviations, with deviations of several sparsities, and as published (with a fifth of its steps). Prints the
tables of ``docs/deviations.md``; about half an hour on one CPU core::

    python examples/deviations.py
"""

import torch
from deepinv.loss.metric import PSNR

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.core.observation import Observation
from deepinv_dmilo.core.problem import sparse_deviation
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.tasks import make_physics

prior = DiffusionPrior.from_pretrained("digits")
digits = held_out_images("digits")[248:252]
patched = digits.clone()
patched[:, :, 24:28, 4:8] = 0.5
pictures = {
    "digit": digits,
    "digit + grey square": patched,
    "inverted digit": 1 - digits,
    "digit rotated by 90 degrees": digits.rot90(dims=(2, 3)),
}
tasks = {
    "denoising": {},
    "deblurring": {},
    "inpainting": {"missing": 0.3},
    "super-resolution": {"factor": 2},
    "compressed-sensing": {"ratio": 0.5},
}
sparsities = (1.0, 0.3, 0.1, 0.03, 0.01)


def psnr(x_hat, x):
    return f"{PSNR()(x_hat.clamp(0, 1), x).mean().item():.2f}"


print("| noise | task | picture | none |", " | ".join(f"sparsity {s}" for s in sparsities), "|")
for noise in (0.005, 0.05):
    for task, options in tasks.items():
        physics = make_physics(task, (1, 32, 32), noise=noise, **options)
        for picture, x in pictures.items():
            y = physics(x)
            plain = DMILO(prior, sparsity=None)(y, physics)
            # What DMILO(prior, sparsity=...) does after its last level; the levels need not be run again for each.
            u, fit = prior.to_model(plain), Observation(y, physics).fit()
            weights = [torch.full((len(x),), s) for s in sparsities]
            values = [psnr(prior.to_image(u + sparse_deviation(fit, u, w)), x) for w in weights]
            print(f"| {noise} | {task} | {picture} | {psnr(plain, x)} | {' | '.join(values)} |", flush=True)

print("\nAs published, 5 x 40 steps, noise 0.005\n\n| task | picture | none | sparsity 0.1 |")
for task in ("denoising", "inpainting"):
    physics = make_physics(task, (1, 32, 32), **tasks[task])
    for picture, x in pictures.items():
        y = physics(x)
        published = [DMILO.from_preset("inpainting", prior, inner_steps=40, sparsity=s) for s in (None, 0.1)]
        print(f"| {task} | {picture} | {' | '.join(psnr(model(y, physics), x) for model in published)} |", flush=True)
