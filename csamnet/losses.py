"""The loss: cross-entropy plus soft Dice. No public source names the paper's; this one is our choice."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice of the foreground, pooled over the batch.

    `logits` `(B, 2, H, W)`, `target` `(B, H, W)` of 0 and 1. Pooling keeps crops without foreground defined.
    """
    probability = logits.float().softmax(1)[:, 1]
    target = target.to(probability.dtype)
    overlap = 2 * (probability * target).sum()
    return 1 - (overlap + 1) / (probability.sum() + target.sum() + 1)


def segmentation_loss(logits: Tensor, target: Tensor, dice: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Total, cross-entropy and Dice loss of logits `(B, 2, H, W)` against `(B, H, W)` of 0 and 1; scalars."""
    cross_entropy = F.cross_entropy(logits.float(), target.long())
    overlap = dice_loss(logits, target)
    return cross_entropy + dice * overlap, cross_entropy.detach(), overlap.detach()
