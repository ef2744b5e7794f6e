"""Of several searches for an unknown parameter the most probable: by the network, of those that explain y."""

import pytest
import torch
from toys import Gain, posterior_of, prior_that_believes

from deepinv_dmilo import DMILO, DiffusionPrior, Positive
from deepinv_dmilo.priors.pretrained import held_out_images


def test_of_several_samples_of_levels_the_one_that_is_most_probable_is_returned():
    """By the network, where all explain y; by y, where one does not, whatever else it costs."""
    x = held_out_images("photos")[12:13, :, 32:96, 32:96]
    unknown = {"gain": Positive(torch.ones(1, 1, 1, 1))}
    seam = torch.where(torch.arange(64) >= 58, 0.05, 0.0).view(64, 1) * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    samples = torch.cat([x + seam, x, torch.full_like(x, 0.5)])  # an image with a false band, the truth, and grey

    class Given(DMILO):
        def reconstruct(self, posterior, plan, monitor):
            score = self.score(posterior, plan, samples, torch.tensor([1.0, 2.0, 0.0]))
            posterior.nuisance.raw["gain"] = torch.arange(3.0).view(3, 1, 1, 1).log1p()
            return samples, score

    model = Given(DiffusionPrior.from_pretrained("photos"), unknown=unknown, num_samples=3, max_passes=45)
    solution = model.solve(x, Gain(sigma=0.1))
    assert torch.equal(solution.images, x)
    assert solution.parameters["gain"].item() == pytest.approx(2.0)  # that of the same sample


def test_to_explain_the_noise_too_makes_no_sample_likelier(monkeypatch):
    monkeypatch.setattr("deepinv_dmilo.methods.dmilo.negative_elbo", lambda posterior, x: torch.zeros(len(x)))
    x = 0.5 + 0.2 * torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0)).double()
    y, unknown = Gain(sigma=0.1)(x), {"gain": Positive(torch.ones(1, 1, 1, 1).double())}
    model = DMILO(prior_that_believes(), unknown=unknown, num_samples=3, max_passes=45)
    ((_, plan),) = model.plan(y, Gain(sigma=0.1)).groups
    samples = torch.cat([(x + y) / 2, y, torch.full_like(x, 0.1)])
    half_of_it, all_of_it, grey = model.score(
        posterior_of(model, y, Gain(sigma=0.1)), plan, samples, torch.zeros(3)
    ).tolist()
    assert half_of_it == all_of_it == x[0].numel() / 2
    assert grey > 2 * all_of_it
