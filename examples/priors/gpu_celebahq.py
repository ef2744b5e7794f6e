r"""
Faces at 256 x 256 (GPU; not run here)
======================================

.. warning::

    This example is **not executed** when the documentation is built, so it shows no output. It needs a GPU, and it
    downloads the model ``google/ddpm-celebahq-256`` (about 450 MB) from the Hugging Face hub.

A hub id in place of the bundled prior, and the options that fit a larger network to the memory and speed of a GPU.
"""

# %%
# The prior
# ---------
#
# ``autocast`` computes the network in bfloat16 while its weights, the latents and the optimisation stay in float32.
# ``compile`` takes a minute at the first call. ``checkpointing=True`` would lower the memory further, for more time.

import deepinv as dinv
import torch
from deepinv.utils import load_image, plot

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior

device = torch.device("cuda")
prior = DiffusionPrior.from_pretrained("google/ddpm-celebahq-256", autocast=torch.bfloat16, compile=True, device=device)
print(prior)

# %%
# A face
# ------
#
# Give a portrait of your own: the face in the middle, as in CelebA-HQ.

x = load_image("face.png", img_size=(256, 256), resize_mode="resize", device=device)[:, :3]

# %%
# Four times fewer pixels in height and width
# -------------------------------------------

physics = dinv.physics.Downsampling(
    img_size=(3, 256, 256),
    filter="bicubic",
    factor=4,
    noise_model=dinv.physics.GaussianNoise(0.005),
    device=device,
)
y = physics(x)

# %%
# Reconstruction
# --------------
#
# At the defaults, then as published: ``from_preset`` takes thousands of passes.

images = {"measurements": physics.A_dagger(y), "DMILO": DMILO(prior, verbose=True)(y, physics)}
images["DMILO-PGD"] = DMILOPGD(prior, verbose=True)(y, physics)
images["DMILO-PGD, published"] = DMILOPGD.from_preset("super_resolution", prior, verbose=True)(y, physics)

psnr = dinv.metric.PSNR()
for name, image in images.items():
    print(f"{name:22} {psnr(image, x).item():6.2f} dB")
print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")

plot({**images, "ground truth": x}, rescale_mode="clip")

# %%
# Several images at once
# ----------------------
#
# A batch is reconstructed together, and gives the images that one by one would. Where it is too much for the memory,
# ``micro_batch`` says how many go through the network at a time.

batch = x.repeat(8, 1, 1, 1)
x_hat = DMILO(prior, micro_batch=4, verbose=True)(physics(batch), physics)
print(x_hat.shape)
