r"""
Choose default settings
=======================

PSNR of candidate settings, one change at a time, on pictures that no report uses: eight digits (numbers 248 to 255), or
the four photographs for tuning, the middle 64 x 64 of 128 x 128. Prints a table like those of
``docs/lab-book/problems.md``. With ``--hard`` it is of eight harder problems: strong noise, nonlinear operators, few
photons::

    python examples/choose_defaults.py --prior digits
    python examples/choose_defaults.py --prior photos --passes 25 --hard
"""

import argparse
from statistics import mean

import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import PoissonNoise
from torchvision.transforms.functional import center_crop, resize

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, DiffusionPrior, Levels
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.schedules.planning import SEVEN
from deepinv_dmilo.tools.tasks import make_physics

PICTURES = {
    "digits": lambda: held_out_images("digits")[248:256],
    "photos": lambda: center_crop(resize(held_out_images("photos")[12:16], [128, 128], antialias=True), [64, 64]),
}
PHOTONS = "5 photons"  # a pixel
PROBLEMS = [
    ("super-resolution", 0.005, {}),
    ("super-resolution", 0.05, {}),
    ("inpainting", 0.005, {}),
    ("inpainting", 0.005, {"missing": 0.9}),
    ("box-inpainting", 0.005, {}),
    ("deblurring", 0.05, {}),
    ("motion-deblurring", 0.005, {}),
    ("motion-deblurring", 0.05, {}),
    ("compressed-sensing", 0.005, {}),
    ("denoising", 0.05, {}),
]
HARD = [
    ("super-resolution", 0.2, {}),
    ("inpainting", 0.2, {}),
    ("deblurring", 0.2, {}),
    ("nonlinear-deblurring", 0.005, {}),
    ("nonlinear-deblurring", 0.05, {}),
    ("phase-retrieval", 0.05, {}),
    ("denoising", PHOTONS, {}),
    ("deblurring", PHOTONS, {}),
]
SIGMAS = SEVEN  # of problems that are not blind
SILENT = "noise level not given"  # it is estimated
parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
parser.add_argument("--prior", choices=PICTURES, default="digits")
parser.add_argument("--passes", type=int, help="of the network, at most (default: 20 a level)")
parser.add_argument("--hard", action="store_true", help="strong noise, nonlinear operators, few photons")
parser.add_argument("--only", nargs="+", help="only candidates whose names start so")
args = parser.parse_args()

prior, x = DiffusionPrior.from_pretrained(args.prior), PICTURES[args.prior]().clamp(0, 1)
budget = {"max_passes": args.passes}
candidates = {
    "default": DMILO(prior, **budget),
    "DMILO-PGD": DMILOPGD(prior, **budget),
    "all levels for all images": DMILO(prior, schedule=Levels(skip=False), **budget),
    "no level above 1.0": DMILO(prior, schedule=Levels([s for s in SIGMAS if s <= 1]), **budget),
    "the mode, no last call": DMILO(prior, schedule=Levels(mean=False), **budget),
    "neither skipping nor last call": DMILO(prior, schedule=Levels(skip=False, mean=False), **budget),
    "decoupled stages first": DMILO(prior, schedule=Levels(decoupled=True), **budget),
    "no deviations": DMILO(prior, schedule=Levels(deviation_threshold=None), **budget),
    "a last level of 0.02 more": DMILO(prior, schedule=Levels((*SIGMAS, 0.02)), **budget),
    SILENT: DMILO(prior, **budget),
    "four samples of a quarter of the passes": DMILO(prior, num_samples=4, **budget),
}
if args.passes is None:
    candidates |= {
        "10 passes a level": DMILO(prior, solver=LBFGS(steps=10)),
        "40 passes a level": DMILO(prior, solver=LBFGS(steps=40)),
        "two samples of 10 passes a level": DMILO(prior, num_samples=2, solver=LBFGS(steps=10)),
        "Adam on the published chain, 5 x 20, rate 0.05": DMILO(
            prior, schedule=Chain(outer_steps=5, sparsity=None), solver=Adam(steps=20, latent_lr=0.05)
        ),
    }


def physics_of(task, noise, options):
    """The physics of a problem, its noise drawn anew."""
    if noise != PHOTONS:
        return make_physics(task, tuple(x.shape[1:]), noise=noise, **options)
    physics = make_physics(task, tuple(x.shape[1:]), **options)
    physics.noise_model = PoissonNoise(1 / 5, clip_positive=True, rng=torch.Generator().manual_seed(0))
    return physics


problems = HARD if args.hard else PROBLEMS
titles = [f"{task}{' 90 %' if 'missing' in options else ''}, {noise}" for task, noise, options in problems]
print(f"| settings | {' | '.join(titles)} | mean | passes |\n|{'---|' * (len(titles) + 3)}")
for name, model in candidates.items():
    if args.only and not name.startswith(tuple(args.only)):
        continue
    values, passes = [], []
    for task, noise, options in problems:
        y = physics_of(task, noise, options)(x)
        physics = physics_of(task, 0.0 if name == SILENT else noise, options)
        x_hat, metrics = model(y, physics, compute_metrics=True)
        values.append(PSNR()(x_hat, x).mean().item())
        passes.append(mean(curve[-1] for curve in metrics["passes"]))
    print(
        f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} | {mean(values):.2f} | {mean(passes):.0f} |", flush=True
    )
