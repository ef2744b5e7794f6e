r"""
Photographs
===========

The bundled prior ``photos`` was trained on colour photographs and takes any size. Here DMILO
:footcite:p:`zheng2025dmilo` removes the blur of a moving camera, demosaics the colours of a sensor, enlarges a small
picture to 512 x 512 pixels, and improves a picture file on the command line.
"""

# %%
# Motion blur
# -----------
#
# The prior was not trained on these photographs. Blur and noise are deepinv's; the original is used for the PSNR only.

import tempfile
from pathlib import Path

import deepinv as dinv
import torch
from deepinv.utils import plot
from PIL import Image
from torchvision.transforms.functional import resize, to_tensor

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.pictures import as_png, read_picture

prior = DiffusionPrior.from_pretrained("photos")
photographs = held_out_images("photos")  # (16, 3, 256, 256), in [0, 1]
psnr = dinv.metric.PSNR()


def noise(sigma):
    """Gaussian noise, the same at every run."""
    return dinv.physics.GaussianNoise(sigma, rng=torch.Generator().manual_seed(0))


def show(**images):
    """Plot images side by side, and print the PSNR of each."""
    truth = images["original"]
    for name, image in images.items():
        if image.shape == truth.shape and name != "original":
            print(f"{name.replace('_', ' '):14} {psnr(image.clamp(0, 1), truth).mean().item():.2f} dB")
    plot(images, rescale_mode="clip", figsize=(9, 3.2), dpi=110, fontsize=9)


x = resize(photographs[3:4], [128, 128], antialias=True).clamp(0, 1)
kernel = dinv.physics.generator.MotionBlurGenerator((33, 33), rng=torch.Generator().manual_seed(1)).step()["filter"]
physics = dinv.physics.BlurFFT((3, 128, 128), filter=kernel, noise_model=noise(0.01))
y = physics(x)
show(measurements=y, reconstruction=DMILO(prior, max_passes=25)(y, physics), original=x)

# %%
# Demosaicing
# -----------
#
# A sensor measures one of three colours at each pixel (Bayer's pattern). That is an inpainting mask.

x = resize(photographs[10:11], [128, 128], antialias=True).clamp(0, 1)
physics = dinv.physics.Demosaicing((3, 128, 128), noise_model=noise(0.02))
y = physics(x)
show(measurements=y, reconstruction=DMILO(prior, max_passes=25)(y, physics), original=x)

# %%
# A larger picture
# ----------------
#
# The network was trained on crops of 64 x 64 and has no attention, so time and memory grow linearly with the number of
# pixels. Four photographs are one picture of 128 x 128 pixels, which fifteen passes enlarge to 512 x 512.

x = torch.cat([torch.cat(list(photographs[[i, i + 1]]), -1) for i in (1, 9)], -2)[None]
physics = dinv.physics.Downsampling((3, 512, 512), filter="bicubic", factor=4, noise_model=noise(0.01))
y = physics(x)
show(measurements=y, reconstruction=DMILO(prior, max_passes=15)(y, physics), original=x)

# %%
# A picture file
# --------------
#
# The command is ``deepinv-dmilo reconstruct small.png --task super-resolution --max-passes 25 --out large.png``; here
# it is called from Python. Pillow makes the picture small, as is common, and the command does not know how.

with tempfile.TemporaryDirectory() as folder:
    small, large = Path(folder) / "small.png", Path(folder) / "large.png"
    truth = resize(photographs[6:7], [128, 128], antialias=True).clamp(0, 1)
    as_png(truth[0]).resize((32, 32), Image.Resampling.LANCZOS).save(small)
    main(["reconstruct", str(small), "--task", "super-resolution", "--max-passes", "25", "--out", str(large)])
    bicubic = Image.open(small).resize((128, 128), Image.Resampling.BICUBIC)
    show(bicubic=to_tensor(bicubic)[None], reconstruction=read_picture(large)[None], original=truth)

# %%
# .. footbibliography::
