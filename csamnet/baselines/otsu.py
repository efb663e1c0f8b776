"""The bar that a trained network has to clear: a threshold on colour, which learns nothing."""

from __future__ import annotations

import numpy as np
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu


def otsu_haematoxylin(image: np.ndarray) -> np.ndarray:
    """Foreground probability `(H, W)` float32 of an `(H, W, 3)` uint8 image, as `predict_probability` gives it.

    Haematoxylin by colour deconvolution (Ruifrok and Johnston 2001), thresholded at Otsu's value for the whole image:
    there the probability is 1/2, and it rises with the stain as a logistic function on the scale of its standard
    deviation, so that curves over thresholds are defined. An image of one colour has no foreground.
    """
    stain = rgb2hed(image)[..., 0]
    scale = stain.std()
    if scale < 1e-6:
        return np.zeros(stain.shape, np.float32)
    return (1 / (1 + np.exp((threshold_otsu(stain) - stain) / scale))).astype(np.float32)
