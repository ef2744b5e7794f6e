r"""
What sparse deviations gain
===========================

DMILO reconstructs images outside the range of the prior: digits with a grey square, inverted and rotated digits. It
runs without deviations, with deviations above several multiples of the noise level, and as published (with a fifth of
its steps). Prints tables like those of ``docs/deviations.md``, in about three hours on one CPU core::

    python examples/deviations.py
"""

from deepinv.loss.metric import PSNR

from deepinv_dmilo import DMILO, DiffusionPrior, Levels
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
thresholds = (50.0, 15.0, 5.0, 1.5, 0.5)  # in standard deviations of the noise


def psnr(x_hat, x):
    return f"{PSNR()(x_hat, x).mean().item():.2f}"


print("| noise | task | picture | none |", " | ".join(f"threshold {t}" for t in thresholds), "|")
for noise in (0.005, 0.05):
    for task, options in tasks.items():
        physics = make_physics(task, (1, 32, 32), noise=noise, **options)
        for picture, x in pictures.items():
            y = physics(x)
            plain = DMILO(prior, schedule=Levels(deviation_threshold=None))(y, physics)
            models = [DMILO(prior, schedule=Levels(deviation_threshold=t)) for t in thresholds]
            values = [psnr(model(y, physics), x) for model in models]
            print(f"| {noise} | {task} | {picture} | {psnr(plain, x)} | {' | '.join(values)} |", flush=True)

print("\nAs published, 5 x 40 steps, noise 0.005\n\n| task | picture | none | sparsity 0.1 |")
for task in ("denoising", "inpainting"):
    physics = make_physics(task, (1, 32, 32), **tasks[task])
    for picture, x in pictures.items():
        y = physics(x)
        published = [DMILO.from_preset("inpainting", prior, inner_steps=40, sparsity=s) for s in (None, 0.1)]
        print(f"| {task} | {picture} | {' | '.join(psnr(model(y, physics), x) for model in published)} |", flush=True)
