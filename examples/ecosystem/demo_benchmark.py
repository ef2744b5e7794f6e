r"""
A benchmark in ten lines
========================

Every installed reconstructor and deepinv's samplers are compared on the same digits, measurements and network: first
with deepinv's own ``test``, then with the benchmark suite of this package, which uses `benchopt
<https://benchopt.github.io>`_.
"""

# %%
# Ten lines
# ---------
#
# ``deepinv.test`` takes the reconstructors of this package like its own. ``deepinv_dmilo.registry`` lists the
# reconstructors of every installed package, by the entry points in the group ``deepinv.reconstructors``.

import contextlib
import io
import tempfile
import warnings
from pathlib import Path

import deepinv as dinv
import matplotlib.pyplot as plt
from deepinv.datasets import TensorDataset
from torch.utils.data import DataLoader

from deepinv_dmilo import registry
from deepinv_dmilo.benchmarks.suite import run_suite
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.tasks import make_physics

warnings.filterwarnings("ignore", message="non_blocking_transfers")  # deepinv's, on every CPU
prior = registry.load("digits", registry.PRIORS)
physics = make_physics("inpainting", (1, 32, 32), missing=0.7, noise=0.05)
x = held_out_images("digits")[:4]
loader = DataLoader(TensorDataset(x=x, y=physics(x)), batch_size=4)
settings = {"prior": prior, "max_passes": 120}  # options that a method does not have are left out
methods = {name: registry.load(name, optional=settings) for name in registry.available()}
results = {
    name: dinv.test(model, loader, physics, device="cpu", metrics=[dinv.loss.PSNR(), dinv.loss.SSIM()], verbose=False)
    for name, model in methods.items()
}

for name, result in results.items():
    print(f"{name:13} {result['PSNR']:6.2f} dB  SSIM {result['SSIM']:.3f}")

# %%
# The images behind the numbers
# -----------------------------

y, names = physics(x), list(methods)
dinv.utils.plot(
    [x, y, *(methods[name](y, physics) for name in names)], ["ground truth", "measured", *names], max_imgs=2
)

# %%
# The same as a suite
# -------------------
#
# :func:`deepinv_dmilo.benchmarks.suite.run_suite`, or ``deepinv-dmilo benchmark`` on the command line, adds deepinv's
# samplers with tuned weights, counts network passes, and writes tables and pictures. It keeps its results, and resumes
# after an interruption. Here it runs on one digit and one task with a small budget, without benchopt's messages.

folder = Path(tempfile.mkdtemp())
with contextlib.redirect_stdout(io.StringIO()):
    rows = run_suite("digits", folder, tasks=["inpainting-70"], noises=[0.05], limit=1, budgets=[25])

print(f"{'method':24} {'PSNR (dB)':>9} {'passes':>7} {'calls':>6}")
for row in rows:
    print(f"{row.method:24} {row.psnr:9.2f} {row.passes:7.0f} {row.calls:6.0f}")

# %%
# It writes a table as ``results.md``, all numbers as ``results.parquet`` and ``results.csv``, and for each noise level
# bars of PSNR and a picture of PSNR against network passes:

print("\n".join(sorted(file.name for file in folder.iterdir() if file.is_file())))
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.imshow(plt.imread(folder / "bars-0.05.png"))
axes.set_axis_off()
plt.show()

# %%
# Summary
# -------
#
# There is one line for each installed method, with the same protocol for all. The number of network passes decides what
# a method costs on your machine. One digit is not enough for a ranking: for that, see the report in
# :doc:`/measurements`.

best = max(rows, key=lambda row: row.psnr)
print(f"on this digit {best.method} is ahead, with {best.passes:.0f} passes and {best.calls:.0f} calls")
