"""A reproducible companion to CSAMNet: Cross-Scale Attention Modulation for Histopathological Nuclei Segmentation.

`csamnet.CSAMNet` is the network; `csamnet.load` and `csamnet.predict` run trained weights on an image.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["CSAMNet", "InputError", "load", "predict"]


def __getattr__(name: str):
    """Import the network only when it is asked for, so that the workflow can use the package without torch."""
    if name == "CSAMNet":
        from csamnet.model import CSAMNet

        return CSAMNet
    if name in ("load", "predict"):
        from csamnet import inference

        return getattr(inference, name)
    if name == "InputError":
        from csamnet.files import InputError

        return InputError
    raise AttributeError(f"module 'csamnet' has no attribute {name!r}")
