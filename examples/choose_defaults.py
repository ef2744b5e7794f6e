r"""
Choose default settings
=======================

PSNR of candidate settings on eight held-out digits that no report uses (numbers 248 to 255), one change at a time.
Prints the table of ``docs/defaults.md``; about a quarter of an hour on one CPU core::

    python examples/choose_defaults.py
"""

from statistics import mean

import torch
from deepinv.loss.metric import PSNR

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior
from deepinv_dmilo.core.noise import noise_variance, unexplained_variance
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.reconstructors.dmilo import LEVELS
from deepinv_dmilo.tools.tasks import make_physics

prior = DiffusionPrior.from_pretrained("digits")
x = held_out_images("digits")[248:256]
problems = [
    ("super-resolution", 0.005, {}),
    ("inpainting", 0.005, {}),
    ("super-resolution", 0.05, {}),
    ("deblurring", 0.05, {}),
    ("denoising", 0.005, {}),
]
FINE = (1.8, 1.2, 0.8, 0.5, 0.3, 0.15, 0.055)
published = {"levels": None, "latent_penalty": 1e-4, "sparsity": None}
candidates = {
    "default": DMILO(prior),
    "latent penalty 1e-4 around 0, as published": DMILO(prior, latent_penalty=1e-4),
    "10 passes a level": DMILO(prior, inner_steps=10),
    "40 passes a level": DMILO(prior, inner_steps=40),
    "one level": DMILO(prior, levels=LEVELS[:1], inner_steps=100),
    "seven finer levels": DMILO(prior, levels=FINE, inner_steps=14),
    "two layers below each level": DMILO(prior, layers_per_level=2, inner_steps=10),
    "two samples of 10 passes a level": DMILO(prior, num_samples=2, inner_steps=10),
    "DMILO-PGD": DMILOPGD(prior),
    "L-BFGS on the published chain, 3 x 3 x 11": DMILO(prior, outer_steps=3, inner_steps=11, **published),
    "Adam on the published chain, 5 x 20, rate 0.05": DMILO(
        prior, outer_steps=5, inner_steps=20, solver="adam", **published
    ),
}
FEW = (1.0, 0.37, 0.055)
for passes in (10, 25):
    candidates[f"at most {passes} passes"] = DMILO(prior, max_passes=passes)
    candidates[f"at most {passes} passes on three levels"] = DMILO(prior, max_passes=passes, levels=FEW)
# The rule for noise that the physics does not tell: a noise model that is not there when the image is reconstructed.
SILENT = "noise of the physics not told"
candidates[SILENT] = DMILO(prior)
# The stopping rule that is not taken: the image after the first level whose residual is down to the noise.
LEAVING = "an image leaves once its residual is down to the noise"
candidates[LEAVING] = DMILO(prior)


def leave_at_the_noise(y, physics):
    """Images and passes of the shortest schedule that fits each image's measurements to the noise, or of the whole."""
    for count in range(1, len(LEVELS) + 1):
        images, metrics = DMILO(prior, levels=LEVELS[:count])(y, physics, compute_metrics=True)
        spent = torch.tensor([curve[-1] for curve in metrics["passes"]])
        if count == 1:
            x_hat, passes, done = images, spent, torch.zeros_like(spent, dtype=torch.bool)
        x_hat = torch.where(done[:, None, None, None], x_hat, images)
        passes = torch.where(done, passes, spent)
        done |= unexplained_variance(images, y, physics) <= noise_variance(images, physics, None)
    return x_hat, passes


titles = [f"{task}, {noise}" for task, noise, _ in problems]
print(f"| settings | {' | '.join(titles)} | mean | passes |\n|{'---|' * (len(titles) + 3)}")
for name, model in candidates.items():
    values, passes = [], []
    for task, noise, options in problems:
        physics = make_physics(task, (1, 32, 32), noise=noise, **options)
        y = physics(x)
        if name == SILENT:
            physics = make_physics(task, (1, 32, 32), noise=0.0, **options)
        if name == LEAVING:
            x_hat, spent = leave_at_the_noise(y, physics)
        else:
            x_hat, metrics = model(y, physics, compute_metrics=True)
            spent = torch.tensor([curve[-1] for curve in metrics["passes"]])
        values.append(PSNR()(x_hat, x).mean().item())
        passes.append(spent.float().mean().item())
    print(
        f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} | {mean(values):.2f} | {mean(passes):.0f} |", flush=True
    )
