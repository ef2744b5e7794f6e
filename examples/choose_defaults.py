r"""
Choose default settings
=======================

PSNR of candidate settings on eight held-out digits that no report uses (numbers 248 to 255), one change at a time.
Prints a table as that of ``docs/defaults.md``; about a quarter of an hour on one CPU core::

    python examples/choose_defaults.py
"""

from statistics import mean

import torch
from deepinv.loss.metric import PSNR

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, DiffusionPrior, Levels
from deepinv_dmilo.core.observation import Observation
from deepinv_dmilo.core.operator import Operator
from deepinv_dmilo.priors.pretrained import held_out_images
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
SIGMAS = Levels().sigmas
FINE = (1.8, 1.2, 0.8, 0.5, 0.3, 0.15, 0.055)
candidates = {
    "default": DMILO(prior),
    "10 passes a level": DMILO(prior, solver=LBFGS(steps=10)),
    "40 passes a level": DMILO(prior, solver=LBFGS(steps=40)),
    "one level": DMILO(prior, schedule=Levels(SIGMAS[:1]), solver=LBFGS(steps=100)),
    "seven finer levels": DMILO(prior, schedule=Levels(FINE), solver=LBFGS(steps=14)),
    "two samples of 10 passes a level": DMILO(prior, num_samples=2, solver=LBFGS(steps=10)),
    "DMILO-PGD": DMILOPGD(prior),
    "L-BFGS on the published chain, 3 x 3 x 11": DMILO(
        prior, schedule=Chain(outer_steps=3, sparsity=None), solver=LBFGS(steps=11)
    ),
    "Adam on the published chain, 5 x 20, rate 0.05": DMILO(
        prior, schedule=Chain(outer_steps=5, sparsity=None), solver=Adam(steps=20, latent_lr=0.05)
    ),
}
FEW = (1.0, 0.37, 0.055)
for passes in (10, 25):
    candidates[f"at most {passes} passes"] = DMILO(prior, max_passes=passes)
    candidates[f"at most {passes} passes on three levels"] = DMILO(prior, max_passes=passes, schedule=Levels(FEW))
# The rule for noise that the physics does not tell: a noise model that is not there when the image is reconstructed.
SILENT = "noise of the physics not told"
candidates[SILENT] = DMILO(prior)
# The stopping rule that is not taken: the image after the first level whose residual is down to the noise.
LEAVING = "an image leaves once its residual is down to the noise"
candidates[LEAVING] = DMILO(prior)


def is_down_to_the_noise(images, y, physics):
    """Whether the mean squared residual of each image is at most the variance of the noise, (B,)."""
    operator = Operator(physics, tuple(images.shape), images, single=False)
    observation = Observation(y, operator)
    return observation.data.energy(images) / operator.reached <= observation.noise_variance(images)


def leave_at_the_noise(y, physics):
    """Images and passes of the shortest schedule that fits each image's measurements to the noise, or of the whole."""
    for count in range(1, len(SIGMAS) + 1):
        model = DMILO(prior, schedule=Levels(SIGMAS[:count]))
        images, metrics = model(y, physics, compute_metrics=True)
        spent = torch.tensor([curve[-1] for curve in metrics["passes"]])
        if count == 1:
            x_hat, passes, done = images, spent, torch.zeros_like(spent, dtype=torch.bool)
        x_hat = torch.where(done[:, None, None, None], x_hat, images)
        passes = torch.where(done, passes, spent)
        done |= is_down_to_the_noise(images, y, physics)
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
