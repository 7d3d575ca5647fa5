"""Where a model looks: Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391)."""

import copy

import numpy as np
import torch
from torch import Tensor, nn


def grad_cam(model: nn.Module, images: Tensor, classes: list[int]) -> np.ndarray | None:
    """Return a map (N, H, W) of 0 … 1: how much each place speaks for the class of its image.

    images: normalised (N, 3, H, W). The map comes from the last layer whose output has more than
    one place. None, if there is no such layer. A copy of the model makes the pass, in eval mode.
    """
    model = copy.deepcopy(model).eval()
    outputs: list[Tensor] = []

    def note_output(_layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            outputs.append(output)

    for layer in model.modules():
        layer.register_forward_hook(note_output)
    with torch.enable_grad():
        logits = model(images)
        score = logits[torch.arange(len(images)), classes].float().sum()
        candidates = [output for output in outputs if output.requires_grad]
        if not candidates:
            return None
        found = torch.autograd.grad(score, candidates, allow_unused=True)
    pairs = [pair for pair in zip(candidates, found, strict=True) if pair[1] is not None]
    if not pairs:
        return None
    features, gradients = (tensor.detach().float() for tensor in pairs[-1])
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    heat = (weights * features).sum(dim=1).relu()  # (N, h, w)
    heat = heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    size = images.shape[2:]
    return nn.functional.interpolate(heat[:, None], size=size, mode="bilinear")[:, 0].cpu().numpy()


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), that is red where the map (H, W) is high."""
    red = np.stack([heat, np.zeros_like(heat), 1 - heat], axis=2) * 255
    strength = 0.15 + 0.45 * heat[..., None]
    return (pixels * (1 - strength) + red * strength).astype(np.uint8)
