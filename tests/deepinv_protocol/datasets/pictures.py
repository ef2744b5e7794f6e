"""Random pictures, and a downsampling that is not told their size, as in div2k_super_resolution_2x."""

import deepinv as dinv
import torch
from benchopt import BaseDataset
from deepinv.datasets import TensorDataset


class Dataset(BaseDataset):
    name = "pictures"
    parameters = {"debug": [False, True]}

    def get_data(self):
        x = torch.rand(2 if self.debug else 3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
        return {"dataset": TensorDataset(x=x), "physics": dinv.physics.Downsampling(factor=2, filter="bicubic")}
