import deepinv as dinv
import pytest
import torch
import toys

torch.set_num_threads(1)  # for networks this small, more threads wait for one another


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def prior():
    """A small network, for tests of what any prior does; files with one of their own have that."""
    return toys.toy_prior(toys.ConvNet(), dtype=torch.float32)


@pytest.fixture
def inpainting():
    """A physics, and measurements of four images."""
    physics = dinv.physics.Inpainting((3, 24, 40), mask=0.5, rng=torch.Generator().manual_seed(0))
    return physics, physics(torch.rand(4, 3, 24, 40))
