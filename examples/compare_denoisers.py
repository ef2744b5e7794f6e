r"""
Compare the prior ``photos`` with classic denoisers
===================================================

PSNR of plain denoising on the twelve held-out photographs at 128 x 128, by one call of the network of the bundled prior
``photos`` and by total variation, wavelets and BM3D of deepinv, each with the best of three strengths for the noise.
Prints the table of the model card; a few minutes::

    pip install bm3d ptwt
    python examples/compare_denoisers.py
"""

import deepinv as dinv
import torch
from torchvision.transforms.functional import resize

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

x = resize(held_out_images("photos")[:12], [128, 128], antialias=True).clamp(0, 1)
psnr = dinv.metric.PSNR()
network = DiffusionPrior.from_pretrained("photos").denoiser()
variation = dinv.models.TVDenoiser(n_it_max=200)
wavelets = dinv.models.WaveletDenoiser(level=3, wv="db8", non_linearity="soft")
bm3d = dinv.models.BM3D()
methods = {
    "total variation": (variation, (0.5, 0.75, 1.0)),
    "wavelets": (wavelets, (0.75, 1.0, 1.5)),
    "BM3D": (bm3d, (0.75, 1.0, 1.25)),
    "photos, one call": (network, (1.0,)),
}
noises = (0.02, 0.05, 0.1, 0.2)
values: dict[str, list[float]] = {name: [] for name in ("noisy", *methods)}
with torch.no_grad():
    for sigma in noises:
        y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        values["noisy"].append(psnr(y, x).mean().item())
        for name, (denoiser, strengths) in methods.items():
            best = max(psnr(denoiser(y, strength * sigma).clamp(0, 1), x).mean().item() for strength in strengths)
            values[name].append(best)
print(f"| PSNR (dB) at noise | {' | '.join(map(str, noises))} |\n|---|{'---|' * len(noises)}")
for name, row in values.items():
    print(f"| {name} | {' | '.join(f'{v:.1f}' for v in row)} |")
