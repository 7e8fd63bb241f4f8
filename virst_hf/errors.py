"""The errors that `virst_hf` raises for its users. All are a `ValueError`; each says what was found and what to do."""

__all__ = ["CheckpointError", "ConfigError", "VideoError", "VirstError"]


class VirstError(ValueError):
    """Base of every error that the package raises on bad input.

    Example:

    ```python
    >>> from virst_hf.errors import VideoError, VirstError
    >>> issubclass(VideoError, VirstError), issubclass(VirstError, ValueError)
    (True, True)

    ```
    """


class VideoError(VirstError):
    """A video, frame folder, image or array cannot be read, or its frames do not fit together."""


class CheckpointError(VirstError):
    """A checkpoint lacks tensors, has unknown ones or wrong shapes, or its file cannot be read safely."""


class ConfigError(VirstError):
    """The sizes in a configuration do not fit together."""
