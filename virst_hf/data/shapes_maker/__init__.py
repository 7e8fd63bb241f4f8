"""The maker of Shapes: scenes, pictures, sentences with their targets, and the layouts on disk."""

from .writing import make_shapes

__all__ = ["make_shapes"]
