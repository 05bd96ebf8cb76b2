"""Hermes: one universal 3D segmentation model for labelling campaigns."""

__version__ = "0.1.0"
