r"""
What sparse deviations buy
==========================

Reconstructs images that the prior cannot make: digits with a bright square, inverted and rotated digits, and compares
DMILO with and without deviations, and as published (with a tenth of its steps). Prints the table of
``docs/deviations.md``; about half an hour on two CPU cores::

    python examples/deviations.py
"""

from deepinv.loss.metric import PSNR

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.pretrained import held_out_images
from deepinv_dmilo.tasks import make_physics

prior = DiffusionPrior.from_pretrained("digits")
digits = held_out_images("digits")[248:252]
patched = digits.clone()
patched[:, :, 24:28, 4:8] = 0.5
pictures = {
    "digit": digits,
    "digit + grey square": patched,
    "inverted digit": 1 - digits,
    "rotated by 90 degrees": digits.rot90(dims=(2, 3)),
}
tasks = {
    "denoising": {},
    "deblurring": {},
    "inpainting": {"missing": 0.3},
    "super-resolution": {"factor": 2},
    "compressed-sensing": {"ratio": 0.5},
}
methods = {f"sparsity {s}": DMILO(prior, sparsity=s) for s in (None, 0.3, 0.1, 0.03, 0.01)}
published = {"outer_steps": 5, "inner_steps": 40, "latent_lr": 2e-2}
for s in (None, 0.1):
    methods[f"published, 5 x 40, sparsity {s}"] = DMILO.from_preset("inpainting", prior, **published, sparsity=s)

for noise in (0.005, 0.05):
    print(f"\nNoise {noise}\n\n| task | picture | {' | '.join(methods)} |\n|{'---|' * (len(methods) + 2)}")
    for task, options in tasks.items():
        physics = make_physics(task, (1, 32, 32), noise=noise, **options)
        for picture, x in pictures.items():
            y = physics(x)
            values = [PSNR()(model(y, physics), x).mean().item() for model in methods.values()]
            print(f"| {task} | {picture} | {' | '.join(f'{v:.2f}' for v in values)} |", flush=True)
