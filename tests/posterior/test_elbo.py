"""Of several searches for an unknown parameter the most probable: by the network, of those that explain y."""

import torch
from toys import Gain, prior_that_believes

from deepinv_dmilo import DMILO, DiffusionPrior, Levels, Positive
from deepinv_dmilo.methods.run import Run
from deepinv_dmilo.priors.pretrained import held_out_images


def test_of_several_samples_of_levels_the_one_that_is_most_probable_is_returned():
    """By the network, where all explain y; by y, where one does not, whatever else it costs."""
    x = held_out_images("photos")[12:13, :, 32:96, 32:96]
    unknown = {"gain": Positive(torch.ones(1, 1, 1, 1))}
    model = DMILO(DiffusionPrior.from_pretrained("photos"), unknown=unknown, num_samples=3, max_passes=45)
    seam = torch.where(torch.arange(64) >= 58, 0.05, 0.0).view(64, 1) * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    samples = torch.cat([x + seam, x, torch.full_like(x, 0.5)])  # an image with a false band, the truth, and grey
    run = Run(model, x, Gain(sigma=0.1), tuple(x.shape), None, None, False)
    run.variance = torch.full((3,), 0.1**2)
    schedule = Levels(mean=False)
    images, rows = run.of_samples(schedule.finish(run, samples), torch.tensor([1.0, 2.0, 0.0]))
    assert torch.equal(images, x)
    assert rows.tolist() == [1]


def test_to_explain_the_noise_too_makes_no_sample_likelier():
    x = 0.5 + 0.2 * torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0)).double()
    y, unknown = Gain(sigma=0.1)(x), {"gain": Positive(torch.ones(1, 1, 1, 1).double())}
    model = DMILO(prior_that_believes(), unknown=unknown, num_samples=3, max_passes=45)
    run = Run(model, y, Gain(sigma=0.1), tuple(x.shape), None, None, False)
    run.variance = torch.full((3,), 0.1**2).double()
    samples = torch.cat([(x + y) / 2, y, torch.full_like(x, 0.1)])
    half_of_it, all_of_it, grey = Levels()._unexplained(run, samples).tolist()
    assert half_of_it == all_of_it == x[0].numel() / 2
    assert grey > 2 * all_of_it
