r"""
Choose default settings
=======================

PSNR of candidate settings on held-out digits that no report uses (numbers 250 to 255), for 4x super-resolution and 70 %
inpainting. Prints the table of ``docs/defaults.md``; about ten minutes on two CPU cores::

    python examples/choose_defaults.py
"""

import torch
from deepinv.loss.metric import PSNR
from deepinv.optim import L2
from deepinv.sampling import DPS, DiffPIR

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior
from deepinv_dmilo.demo import counted
from deepinv_dmilo.pretrained import held_out_images
from deepinv_dmilo.tasks import make_physics

prior = DiffusionPrior.from_pretrained("digits")
x = held_out_images("digits")[250:256]
denoiser = prior.denoiser()

candidates = {
    "DMILO, 5 x 20, rate 0.05": DMILO(prior, outer_steps=5, inner_steps=20, latent_lr=0.05),
    "DMILO, 3 x 20, rate 0.1": DMILO(prior, outer_steps=3, inner_steps=20, latent_lr=0.1),
    "DMILO, 4 x 15, rate 0.1": DMILO(prior, outer_steps=4, inner_steps=15, latent_lr=0.1),
    "DMILO-PGD, 5 x 20, rate 0.05, 1 gradient step": DMILOPGD(prior, gradient_steps=1),
    "DMILO-PGD, 5 x 20, rate 0.05, 10 gradient steps": DMILOPGD(prior, gradient_steps=10),
    **{
        f"DPS, 200 steps, weight {weight}": DPS(denoiser, num_steps=200, weight=weight, dtype=torch.float32)
        for weight in (1, 30, 100, 200, 400, 1000)
    },
    **{
        f"DiffPIR, lambda {weight}": DiffPIR(denoiser, data_fidelity=L2(), lambda_=weight)
        for weight in (1.0, 7.0, 25.0)
    },
}

print("| settings | super-resolution (dB) | inpainting (dB) | network evaluations |\n|---|---|---|---|")
for name, model in candidates.items():
    results = []
    for task in ("super-resolution", "inpainting"):
        physics = make_physics(task, (1, 32, 32))
        y = physics(x)
        torch.manual_seed(0)  # deepinv's samplers draw from the global state
        with torch.no_grad(), counted(prior.unet) as calls:
            x_hat = model(y, physics).to(x.dtype).clamp(0, 1)
        results.append(f"{PSNR()(x_hat, x).mean().item():.2f}")
    print(f"| {name} | {' | '.join(results)} | {len(calls)} |", flush=True)
