"""The errors that `virst_hf` raises for its users. All are a `ValueError`; each says what was found and what to do."""

__all__ = ["CheckpointError", "ConfigError", "DataError", "EvaluationError", "VideoError", "VirstError"]


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
    """A video, frame folder, image or array cannot be read, or its frames do not fit together.

    Example:

    ```python
    >>> from virst_hf import VideoError, open_video
    >>> try:
    ...     open_video("absent.mp4")
    ... except VideoError as error:
    ...     print(error)
    There is no file or folder absent.mp4.

    ```
    """


class CheckpointError(VirstError):
    """A checkpoint lacks tensors, has unknown ones or wrong shapes, or its file cannot be read safely.

    Example:

    ```python
    >>> from virst_hf import CheckpointError, load_model
    >>> try:
    ...     load_model("./absent")
    ... except CheckpointError as error:
    ...     print(str(error)[:28])
    There is no folder ./absent.

    ```
    """


class ConfigError(VirstError):
    """The sizes in a configuration do not fit together.

    Example:

    ```python
    >>> from virst_hf import ConfigError, VirstSegmenterConfig
    >>> try:
    ...     VirstSegmenterConfig(image_size=100)
    ... except ConfigError as error:
    ...     print(error)
    The segmenter's image_size must be a multiple of 32, found 100.

    ```
    """


class DataError(VirstError):
    """A data set, an annotation or a mask is missing, malformed, unsafe to read, or does not fit its frames.

    Example:

    ```python
    >>> from virst_hf import DataError
    >>> from virst_hf.rle import decode_rle
    >>> try:
    ...     decode_rle({"size": [4, 6], "counts": "9220"})
    ... except DataError as error:
    ...     print(error)
    A mask of 4 x 6 has runs of 15 pixels in all; expected 24.

    ```
    """


class EvaluationError(VirstError):
    """Predictions are missing, unreadable, of another size or of unknown expressions, or a protocol is unknown.

    Example:

    ```python
    >>> from virst_hf import EvaluationError, VirstError
    >>> issubclass(EvaluationError, VirstError)
    True

    ```
    """
