import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # for networks this small, more threads wait for one another


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
