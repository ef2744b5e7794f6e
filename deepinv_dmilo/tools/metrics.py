"""Perceptual metrics, in addition to deepinv's PSNR and SSIM: networks whose weights may be missing."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from deepinv.loss.metric import LPIPS, Metric
from torch import Tensor

SMALLEST = 64  # pixels, the side of the patches that the authors of ST-LPIPS test it on; the network runs from 21 on


class STLPIPS(Metric):
    r"""
    ST-LPIPS, a perceptual distance that is almost invariant to shifts of a pixel; lower is better.

    It compares the features of an AlexNet with anti-aliased pooling :footcite:p:`ghildyal2022stlpips`. Network and
    trained weights are those of the package ``stlpips-pytorch``; nothing is downloaded. Images are in [0, 1], shape
    (B, 3, H, W), of at least 64 x 64 pixels; (B, 1, H, W) is taken for three equal channels.

    .. rubric:: References

    .. footbibliography::
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from stlpips_pytorch.stlpips import LPIPS as Network
        except ImportError as error:  # it imports ipython and torchsummary without asking for them
            raise ImportError(
                f"ST-LPIPS needs packages ({error}); type: pip install 'deepinv-dmilo[perceptual]'"
            ) from error
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            self.network = Network(net="alex", variant="shift_tolerant", verbose=False).requires_grad_(False)
        self.lower_better = True

    def metric(self, x_net: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Distances, (B,)."""
        height, width = x.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"ST-LPIPS takes images of at least {SMALLEST} x {SMALLEST}, not of {height} x {width}")
        return self.network(x_net, x, normalize=True).flatten()


#: by the name that records have them under
PERCEPTUAL = {"lpips": LPIPS, "stlpips": STLPIPS}


def open_metric(name: str, shape: tuple[int, ...], device: str | torch.device) -> Metric:
    """
    A perceptual metric, checked to take images (C, H, W).

    :raises ValueError: there is none of this name, its weights cannot be had, or it does not take such images.
    """
    if name not in PERCEPTUAL:
        raise ValueError(f"no metric {name!r}; type some of {', '.join(PERCEPTUAL)} (PSNR and SSIM are always there)")
    try:
        metric = PERCEPTUAL[name]().to(device)
        blank = torch.zeros(1, *shape, device=device).expand(-1, 3, -1, -1)
        metric(blank, blank)
    except Exception as error:  # of downloads, packages, sizes
        raise ValueError(f"the metric {name} cannot be had: {error}") from error
    return metric


@cache
def perceptual_metrics(
    shape: tuple[int, ...], device: str | torch.device, names: tuple[str, ...] | None = None
) -> dict[str, Metric]:
    """Those (None: all) that are available for images (C, H, W), by name; prints which are left out."""
    metrics = {}
    for name in PERCEPTUAL if names is None else names:
        try:
            metrics[name] = open_metric(name, shape, device)
        except ValueError as error:
            print(f"left out: {error}")
    return metrics
