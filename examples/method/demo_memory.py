r"""
Memory against the number of layers
===================================

DMPlug :footcite:p:`wang2024dmplug` differentiates through all layers of the chain at once, so it keeps the graph of
each layer. DMILO :footcite:p:`zheng2025dmilo` solves one layer after the other, and keeps the graph of one. This
example counts the exact number of bytes in these graphs, on the CPU.
"""

# %%
# What is counted
# ---------------
#
# Autograd keeps the tensors that the backward pass needs. The hooks of
# :class:`torch.autograd.graph.saved_tensors_hooks` report when a tensor is saved and when it is freed. The example adds
# up the bytes of the tensors that are alive. A storage that is saved twice counts once, and the weights do not count.

from collections import Counter

import matplotlib.pyplot as plt
import torch

from deepinv_dmilo import DMILO, DiffusionPrior, DMPlug
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.tasks import make_physics


class GraphBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of saved tensors; ``peak`` is the maximum."""

    def __init__(self, module):
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.users, self.now, self.peak = Counter(), 0, 0
        super().__init__(lambda tensor: Saved(tensor, self), lambda saved: saved.tensor)


class Saved:
    """A saved tensor, counted as long as it is alive."""

    def __init__(self, tensor, count):
        self.tensor, self.count = tensor, count
        storage = tensor.untyped_storage()
        self.key, self.bytes = storage.data_ptr(), storage.nbytes()
        if self.key in count.weights:
            self.bytes = 0
        count.users[self.key] += 1
        if count.users[self.key] == 1:
            count.now += self.bytes
            count.peak = max(count.peak, count.now)

    def __del__(self):
        self.count.users[self.key] -= 1
        if self.count.users[self.key] == 0:
            self.count.now -= self.bytes


# %%
# One image, chains of one to five layers
# ---------------------------------------
#
# Both methods run on the chain from pure noise, as published, for a few steps: the memory is the same at each step.

x = held_out_images("digits")[:1]
physics = make_physics("inpainting", (1, 32, 32))
y = physics(x)
layers = range(1, 6)
peaks = {"DMPlug": [], "DMILO": []}
prior = DiffusionPrior.from_pretrained("digits")
for n in layers:
    methods = {
        "DMPlug": DMPlug(prior, num_layers=n, steps=2),
        "DMILO": DMILO.from_preset("inpainting", prior, num_layers=n, outer_steps=1, inner_steps=2),
    }
    for name, method in methods.items():
        count = GraphBytes(prior)
        with count:
            method(y, physics)
        peaks[name].append(count.peak / 1e6)

print("layers  " + "  ".join(f"{name:>9}" for name in peaks))
for i, n in enumerate(layers):
    print(f"{n:6}  " + "  ".join(f"{values[i]:6.1f} MB" for values in peaks.values()))

# %%
# Plot
# ----

figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, values in peaks.items():
    axes.plot(layers, values, marker="o", label=name)
axes.set(xlabel="layers of the chain", ylabel="MB held by the graph", xticks=layers, ylim=(0, None))
axes.legend()
plt.show()

# %%
# Summary
# -------
#
# The memory of DMPlug grows with the number of layers, that of DMILO is that of one layer:

growth = {name: values[-1] / values[0] for name, values in peaks.items()}
print(f"from one layer to {max(layers)}: DMPlug x {growth['DMPlug']:.2f}, DMILO x {growth['DMILO']:.2f}")

# %%
# Two more options lower the memory of that one layer. ``micro_batch=1`` of the reconstructor takes the images of a
# batch through the network one by one. ``checkpointing=True`` of :class:`deepinv_dmilo.DiffusionPrior` recomputes the
# activations inside the network's blocks in the backward pass.

x = held_out_images("digits")[:4]
y = physics(x)
for checkpointing in (False, True):
    prior = DiffusionPrior.from_pretrained("digits", checkpointing=checkpointing)
    for micro_batch in (None, 1):
        count = GraphBytes(prior)
        with count:
            DMILO(prior, max_passes=5, micro_batch=micro_batch)(y, physics)
        print(
            f"four images, checkpointing={checkpointing!s:5}, micro_batch={micro_batch!s:4}: {count.peak / 1e6:6.1f} MB"
        )

# %%
# .. footbibliography::
