"""Features of the frozen encoders on disk: small runs of several epochs go through both encoders once.

SAM's trunk and neck look at one frame, the vision tower at one clip of a few frames. So a frame and a clip are what is
stored, each under the hash of its own pixels: it does not matter which draw, expression or video they come from, nor
whether frames are drawn with jitter. Without jitter a second epoch encodes nothing at all. With it, the frames of
short videos (Shapes) are soon all there, so that SAM's encoder, the larger part by far, is skipped as well; but the
clips of the vision tower are nearly always new, and are stored in vain.

What is stored comes before everything that trains: the neck's maps before the mask decoder's two convolutions, the
tower's tokens before the projector. All C channels of the finest map make a frame large, 42 * C * (S / 16)^2 bytes:
44 MB at full size, 0.4 MB where C is 64 and S 192. Frames are still read and resized: their pixels are the key.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..modeling_outputs import VirstVideoFeatures
from ..modeling_virst import VirstForVideoSegmentation
from ..modules.frame_store import FrameStore
from ..modules.rotary import module_dtype
from ..modules.segmenter import FrameFeatures, VirstSegmenter
from ..rendering import replacing, write_json

__all__ = ["DTYPES", "CachedFrameStore", "CachedVideoFeatures", "FeatureCache"]

# Two bytes a value. float16 has three bits more than bfloat16, and the maps are far from its largest number.
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Fields of the segmenter's configuration on which trunk and neck depend.
ENCODER_FIELDS = ("trunk_", "fpn_", "image_", "hidden_size")
MAPS = ("stride4", "stride8", "top")


class FeatureCache:
    """
    A folder of encoded frames and clips, which fills itself.

    What is not there yet is encoded and written, each file under a temporary name first, so that several processes may
    share a folder and a killed run leaves nothing half-written. A value is used as it was stored, even when it was
    encoded just now, and frames are encoded one at a time: so a run with an empty cache, one with a full cache and one
    that was resumed see the same bits.

    Encoders with other weights have a sub-folder of their own. Not for ZeRO-3: there all processes have to run each
    module together, and what is stored already differs between them.

    Args:
        folder (`str` or `os.PathLike`): Where to; it is made.
        model ([`VirstForVideoSegmentation`]): The model; its encoders must be frozen.
        dtype (`str`, *optional*, defaults to `"float16"`): What values are stored in: `"float16"`, `"bfloat16"` or
            `"float32"`, which is exact.

    Raises:
        ConfigError: The encoders train, or `dtype` is unknown.

    Example:

    ```python
    >>> import tempfile
    >>> import numpy as np
    >>> from virst_hf.training.feature_cache import FeatureCache
    >>> from virst_hf.untrained import untrained_model, untrained_processor
    >>> model, processor = untrained_model().requires_grad_(False), untrained_processor()
    >>> inputs = processor(videos=np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8))
    >>> cache = FeatureCache(tempfile.mkdtemp(), model)
    >>> for _ in range(2):
    ...     features = cache.encode_video(**inputs)
    >>> cache.counts
    {'frames encoded': 8, 'frames read': 8, 'clips encoded': 2, 'clips read': 2}

    ```
    """

    def __init__(self, folder: str | os.PathLike, model: VirstForVideoSegmentation, dtype: str = "float16") -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"The dtype of cached features must be one of {', '.join(DTYPES)}, found {dtype!r}.")
        self.model = model
        encoders = (model.model.vision_tower, model.model.segmenter.image_encoder)
        if model.model.train_encoders or any(p.requires_grad for encoder in encoders for p in encoder.parameters()):
            raise ConfigError(
                "Features of encoders that train cannot be cached: leave out cache_features, or freeze the encoders "
                "(requires_grad, train_encoders)."
            )
        self.dtype = DTYPES[dtype]
        identity = encoder_identity(model)
        self.folder = Path(folder) / f"{identity}-{dtype}"
        self.counts = dict.fromkeys(("frames encoded", "frames read", "clips encoded", "clips read"), 0)
        write_json(self.folder / "about.json", {"encoders": identity, "dtype": dtype, "maps": list(MAPS)})

    def encode_video(
        self,
        pixel_values_videos: Tensor,
        num_vlm_frames: Tensor,
        sam_pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        seg_frame_indices: Tensor | None = None,
        num_seg_frames: Tensor | None = None,
        **_: object,
    ) -> list[VirstVideoFeatures]:
        """What the model's own `encode_video` gives, from the cache. Nothing that trains is run here.

        Args:
            pixel_values_videos (`torch.Tensor` of shape `(sum of T_vlm, 3, height, width)`): VLM view.
            num_vlm_frames (`torch.LongTensor` of shape `(num_videos,)`): `T_vlm` of each; 1 for a still image.
            sam_pixel_values (`torch.Tensor` of shape `(sum of T, 3, S, S)`): `uint8` frames of the SAM view.
            num_frames (`torch.LongTensor` of shape `(num_videos,)`): T of each video.
            seg_frame_indices (`torch.LongTensor` of shape `(sum of T_seg,)`): SAM frame of each `T_seg` frame.
            num_seg_frames (`torch.LongTensor` of shape `(num_videos,)`): `T_seg` of each.
            **_: Other inputs of the model; not used.

        Returns:
            `list[CachedVideoFeatures]`: One a video, for one forward pass (or several without a graph).

        Raises:
            DataError: A file cannot be read or written, or a value does not fit the dtype.
            ConfigError: The weights are spread over the processes (ZeRO-3).
        """
        if hasattr(self.model.lm_head.weight, "ds_id"):
            raise ConfigError("cache_features does not go with ZeRO-3, where all processes have to encode together.")
        clips = pixel_values_videos.split(num_vlm_frames.tolist())
        tokens = [self._tokens(clip) for clip in clips]
        model = self.model.model
        if sam_pixel_values is None:
            return [CachedVideoFeatures(model.projector, t, len(c) == 1) for t, c in zip(tokens, clips, strict=True)]
        out: list[VirstVideoFeatures] = []
        seg_indices = seg_frame_indices.split(num_seg_frames.tolist())
        for i, pixels in enumerate(sam_pixel_values.split(num_frames.tolist())):
            store = CachedFrameStore(model.segmenter, [self._frame(frame) for frame in pixels])
            still = len(clips[i]) == 1
            out.append(CachedVideoFeatures(model.projector, tokens[i], still, seg_indices[i].tolist(), store))
        return out

    def _tokens(self, clip: Tensor) -> Tensor:
        """Tokens of one video, `(num_clips, num_patches, vision_width)`."""
        size = self.model.config.vision_config.frames_per_clip
        size = 1 if len(clip) == 1 else size  # a still image
        paths = [self._ensure("clips", part, self._encode_clip) for part in clip.split(size)]
        dtype = module_dtype(self.model.model.projector)
        # Cast before they are joined: autocast cannot join float16 on a CPU.
        return torch.cat([read(path, ["tokens"], clip.device)[0].to(dtype) for path in paths])

    def _frame(self, pixels: Tensor) -> Path:
        return self._ensure("frames", pixels[None], self._encode_frame)

    def _encode_clip(self, clip: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.model.model.encode_clips(clip)}

    def _encode_frame(self, pixels: Tensor) -> dict[str, Tensor]:
        """The maps of the neck: `encode_frames` normalises the pixels, and its convolutions come after them."""
        segmenter = self.model.model.segmenter
        maps: list[Tensor] = []
        handle = segmenter.image_encoder.register_forward_hook(lambda module, args, output: maps.extend(output))
        try:
            segmenter.encode_frames(pixels)
        finally:
            handle.remove()
        return dict(zip(MAPS, maps, strict=True))

    def _ensure(self, kind: str, pixels: Tensor, encode: Callable[[Tensor], dict[str, Tensor]]) -> Path:
        """The file of a frame or clip, which is encoded first if there is none."""
        key = content_hash(pixels)
        path = self.folder / kind / key[:2] / f"{key}.safetensors"
        if path.exists():
            self.counts[f"{kind} read"] += 1
            return path
        self.counts[f"{kind} encoded"] += 1
        # In the weights' own type: what is stored must not depend on the autocast of the run that stored it.
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            values = {name: x.to(self.dtype).cpu().contiguous() for name, x in encode(pixels).items()}
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise DataError(f"{name} of an encoded {kind[:-1]} does not fit {self.dtype}; cache it as bfloat16.")
        try:
            with replacing(path) as temporary:
                save_file(values, temporary)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"The encoded {kind[:-1]} {path} cannot be written ({error}). Make room, or train without "
                "cache_features."
            ) from error
        return path


class CachedVideoFeatures(VirstVideoFeatures):
    """
    Features of a video from the cache. The projector, which trains, runs when its result is first asked for: inside
    the forward pass, under its autocast.

    Args:
        projector (`torch.nn.Module`): Tokens of the vision tower to those of the language model.
        tokens (`torch.Tensor` of shape `(num_clips, num_patches, vision_width)`): The tower's tokens.
        is_image (`bool`): Whether it is a still image.
        seg_frame_indices (`list[int]`, *optional*): Frame of each of the `T_seg` frames.
        frames ([`CachedFrameStore`], *optional*): SAM features of each frame.
    """

    def __init__(
        self,
        projector: nn.Module,
        tokens: Tensor,
        is_image: bool,
        seg_frame_indices: Sequence[int] = (),
        frames: "CachedFrameStore | None" = None,
    ) -> None:
        self.projector, self.tokens, self.is_image = projector, tokens, is_image
        self.seg_frame_indices, self.frames = list(seg_frame_indices), frames
        self.num_frames = 0 if frames is None else len(frames)
        self.seg_features = None if frames is None else frames.seg_features(self.seg_frame_indices)

    # As the vision tower's tokens with their graph: made once for all texts about the video.
    @functools.cached_property
    def video_embeds(self) -> Tensor:
        """Tokens for the language model, `(num_video_tokens, text_width)`."""
        return self.projector(self.tokens).flatten(0, 1)


class CachedFrameStore(FrameStore):
    """
    A [`FrameStore`] that reads maps instead of encoding pixels. The finer ones are read, and go through the mask
    decoder's convolutions, when a frame is first asked for: in training only the supervised frames are.

    Args:
        segmenter ([`VirstSegmenter`]): For the two convolutions.
        paths (`Sequence[pathlib.Path]`): File of each frame.
    """

    def __init__(self, segmenter: VirstSegmenter, paths: Sequence[Path]) -> None:
        self.segmenter = segmenter
        self.paths = list(paths)
        self.device = next(segmenter.parameters()).device
        self.dtype = module_dtype(segmenter.image_encoder)
        self.tops: dict[int, Tensor] = {}
        self.pinned: dict[int, FrameFeatures] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, names: Sequence[str]) -> list[Tensor]:
        """Maps of one frame, each of batch size 1."""
        return [x.to(self.dtype) for x in read(self.paths[index], names, self.device)]

    def top(self, index: int) -> Tensor:
        """Stride-16 map of one frame."""
        if index not in self.tops:
            self.tops[index] = self.read(index, ["top"])[0]
        return self.tops[index]

    def seg_features(self, frames: Sequence[int]) -> Tensor:
        """Stride-16 maps, `(len(frames), C, S / 16, S / 16)`; a frame may repeat."""
        return torch.cat([self.top(i) for i in frames])

    def __call__(self, index: int) -> FrameFeatures:
        """Features of one frame, of batch size 1."""
        if index not in self.pinned:
            stride4, stride8 = self.read(index, ["stride4", "stride8"])
            decoder = self.segmenter.sam_mask_decoder
            self.pinned[index] = FrameFeatures(self.top(index), decoder.conv_s1(stride8), decoder.conv_s0(stride4))
        return self.pinned[index]


def read(path: Path, names: Sequence[str], device: torch.device) -> list[Tensor]:
    """Some tensors of a file; the others are not read.

    Args:
        path (`pathlib.Path`): A safetensors file.
        names (`Sequence[str]`): Which.
        device (`torch.device`): Where to.

    Returns:
        `list[torch.Tensor]`: In the type they are stored in.

    Raises:
        DataError: The file is not whole, or not one of these.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return [file.get_tensor(name) for name in names]
    except (OSError, SafetensorError) as error:
        raise DataError(f"The cached features in {path} cannot be read ({error}). Delete this file.") from error


def content_hash(tensor: Tensor) -> str:
    """A hash of shape, type and bytes, of 32 hexadecimal digits.

    Args:
        tensor (`torch.Tensor`): At least one axis.

    Returns:
        `str`: The hash.
    """
    digest = hashlib.blake2b(f"{tuple(tensor.shape)} {tensor.dtype}".encode(), digest_size=16)
    digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()


def encoder_identity(model: VirstForVideoSegmentation) -> str:
    """A hash of all that the output of both encoders depends on besides pixels: weights and sizes.

    Args:
        model ([`VirstForVideoSegmentation`]): The model.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    vision, segmenter = (x.to_dict() for x in (model.config.vision_config, model.config.segmenter_config))
    facts = {name: value for name, value in segmenter.items() if name.startswith(ENCODER_FIELDS)}
    facts["vision"] = {name: value for name, value in vision.items() if name not in ("transformers_version", "dtype")}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=8)
    for encoder in (model.model.vision_tower, model.model.segmenter.image_encoder):
        for name, value in sorted(encoder.state_dict().items()):
            digest.update(f"{name} {content_hash(value.reshape(-1))}".encode())
    return digest.hexdigest()
