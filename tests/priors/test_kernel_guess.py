"""The network that guesses a blur kernel, with random weights."""

import pytest
import torch

from deepinv_dmilo.priors.kernel_guess import KERNEL_SIZE, KernelGuess
from deepinv_dmilo.utils.spectra import laplacian, transfer_function
from deepinv_dmilo.utils.symmetries import WAYS, turned, turned_back


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return KernelGuess(channels=[8, 16], kernel_channels=[8, 16], groups=2, maps=2).eval()


@pytest.fixture
def pictures():
    return torch.rand(2, 1, 48, 70, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 7), (48, 70), (97, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_size_have_kernels_of_sum_one(network, size, channels):
    kernels = network(torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(1)))
    assert kernels.shape == (2, 1, KERNEL_SIZE, KERNEL_SIZE)
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum((1, 2, 3)), torch.ones(2))


@torch.no_grad()
def test_a_batch_is_its_pictures_and_light_and_contrast_do_not_matter(network, pictures):
    kernels = network(pictures)
    close = {"rtol": 1e-3, "atol": 1e-6}  # of float32 sums in another order
    torch.testing.assert_close(kernels[1:], network(pictures[1:]), **close)
    torch.testing.assert_close(kernels, network(0.2 + 0.5 * pictures), **close)
    assert network(torch.ones(1, 3, 40, 40)).isfinite().all()


@torch.no_grad()
def test_guesses_of_a_mirrored_picture_are_the_mirrored_guesses(network, pictures):
    guesses = network.guesses(pictures)
    assert guesses.shape == (2, WAYS, 1, KERNEL_SIZE, KERNEL_SIZE)
    torch.testing.assert_close(guesses[:, 0], network(pictures))
    for way in range(WAYS):
        others = turned_back(network.guesses(turned(pictures, way)), way)
        distances = (guesses[:, :, None] - others[:, None]).abs().amax((-3, -2, -1))
        assert distances.amin(2).max() < 1e-5, way  # kernels sum to 1; float32
    assert network.guesses(pictures, 3).shape[1] == 3


@torch.no_grad()
def test_the_ways_are_eight_and_have_inverses():
    image = torch.rand(1, 1, 3, 4)
    ways = [turned(image, way) for way in range(WAYS)]
    assert len({(*way.shape, *way.flatten().tolist()) for way in ways}) == WAYS
    assert all(torch.equal(turned_back(way, k), image) for k, way in enumerate(ways))


@torch.no_grad()
def test_the_closed_form_finds_the_kernel_of_maps_that_it_blurred(network):
    rng = torch.Generator().manual_seed(0)
    sharp, kernel = torch.randn(1, 4, 64, 72, generator=rng), torch.zeros(1, 1, KERNEL_SIZE, KERNEL_SIZE)
    kernel[..., 10:20, 14] = 0.1
    blurred = torch.fft.irfft2(torch.fft.rfft2(sharp) * transfer_function(kernel, (64, 72)), s=(64, 72))
    network.log_beta.fill_(-20)
    found = network._closed_form(sharp, blurred, (64, 72))[..., 4:37, 4:37]
    network.log_beta.copy_(torch.linspace(-4.6, 0, 2))
    torch.testing.assert_close(found, kernel.expand(1, 2, -1, -1), atol=1e-4, rtol=0)  # float32 transforms


def test_the_laplacian_is_that_of_differences():
    image = torch.zeros(64, 70)
    image[0, 0], image[0, 1], image[1, 0], image[0, -1], image[-1, 0] = 4, -1, -1, -1, -1
    torch.testing.assert_close(laplacian((64, 70), image), torch.fft.rfft2(image).real, atol=1e-5, rtol=0)


def test_weights_come_back_in_half_precision(network, pictures, tmp_path):
    network.save_pretrained(tmp_path)
    again = KernelGuess.from_pretrained(tmp_path)
    for name, weight in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight.half().float()), name
    assert again(pictures).shape == (2, 1, KERNEL_SIZE, KERNEL_SIZE)


def test_refusals_say_what_to_type(network, tmp_path):
    with pytest.raises(TypeError, match=r"y\.abs\(\)"):
        network(torch.ones(1, 1, 40, 40, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"\(1, 2, 40, 40\); type y of the shape \(B, 1 or 3, H, W\)"):
        network(torch.ones(1, 2, 40, 40))
    with pytest.raises(ValueError, match="type a number from 1 to 8"):
        network.guesses(torch.ones(1, 1, 40, 40), 9)
    with pytest.raises(FileNotFoundError, match="train_kernel_guess"):
        KernelGuess.from_pretrained(tmp_path / "nothing")
