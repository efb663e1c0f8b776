"""A reproducible companion to CSAMNet: Cross-Scale Attention Modulation for Histopathological Nuclei Segmentation.

`csamnet.CSAMNet` is the network; `csamnet.load` and `csamnet.predict` run trained weights on an image.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["CSAMNet", "InputError", "load", "predict"]


def __getattr__(name: str):
    """Import the network only when it is asked for, so that the workflow can use the package without torch."""
    where = {"CSAMNet": "model", "InputError": "files", "load": "inference", "predict": "inference"}
    if name not in where:
        raise AttributeError(f"module 'csamnet' has no attribute {name!r}")
    return getattr(import_module(f"csamnet.{where[name]}"), name)
