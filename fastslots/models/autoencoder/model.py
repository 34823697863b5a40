"""The slot autoencoder: an encoder, slot attention, and a decoder that paints what each slot sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastslots.models.autoencoder.config import SlotAutoencoderConfig
from fastslots.models.autoencoder.layers import (
    Encoder,
    PatchDecoder,
    PixelDecoder,
    from_patches,
    linear_of,
    to_patches,
)
from fastslots.models.autoencoder.outputs import SlotAutoencoderLook, SlotAutoencoderOutput
from fastslots.models.checks import (
    check_image,
    check_not_empty,
    check_num_slots,
    check_slots,
    noise_of,
)
from fastslots.models.precision import wide_dtype
from fastslots.models.pretrained import PretrainedModel
from fastslots.models.slot_encoder import SlotEncoder
from fastslots.models.whitening import Whitening
from fastslots.pictures import mask_segmentation


class SlotAutoencoder(PretrainedModel):
    """Learns slots by painting an image from them: each paints the whole, and a mask of where it shows.

    All that is random is the draw of the initial slots, in either mode. It follows from one key per image
    (see `fastslots.noise`), so that an image's does not depend on the batch, the process or the device.
    Without keys, methods draw fresh ones from torch's global generator.

    With ``backbone="pixels"`` it is Locatello et al.'s, in this package's names (theirs, of TensorFlow):
    ``encoder.convs`` (``encoder_cnn``), ``encoder.positions.dense`` (``encoder_pos.dense``),
    ``slot_encoder.layer_norm`` and ``mlp`` (``layer_norm``, ``feedforward``), ``slot_encoder.slot_init``
    (``slots_mu``, ``slots_log_sigma``), ``slot_encoder.slot_attention`` (``slot_attention``, where the layers
    ``q``, ``k``, ``v`` are ``project_q`` and so on, and the others have the same names),
    ``decoder.positions.dense`` (``decoder_pos.dense``), ``decoder.convs`` and ``decoder.out``
    (``decoder_cnn``). Transposed convolutions are padded as PyTorch's are: each that doubles paints one pixel
    further to the upper left than TensorFlow's.

    Args:
        config: The settings.

    Attributes:
        whitening: The map of colours, which `Whitening.fit` fits to images.

    Raises:
        TypeError: If ``config`` is no ``SlotAutoencoderConfig``.

    Source:
        Locatello et al. 2020, "Object-Centric Learning with Slot Attention", and its public code; Chang et
        al. 2022, section 5.6, trains it implicitly.
    """

    config: SlotAutoencoderConfig
    kind = "SlotAutoencoder"
    config_class = SlotAutoencoderConfig

    def __init__(self, config: SlotAutoencoderConfig) -> None:
        super().__init__(config)
        self.whitening = Whitening(config.image_shape)
        self.encoder = Encoder(config)
        width, layer = config.width, linear_of(config)
        mlp = nn.Sequential(layer(width, width), nn.ReLU(), layer(width, width))
        self.slot_encoder = SlotEncoder(config, width, mlp)
        decoder = PixelDecoder if config.backbone == "pixels" else PatchDecoder
        self.decoder: PixelDecoder | PatchDecoder = decoder(config)

    def forward(self, image: Tensor, keys: Tensor | None = None) -> SlotAutoencoderOutput:
        """Reconstructs a batch and computes the loss.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``, in the parameters' dtype.
            keys: Of the initial slots, ``[B, 2]`` int32. Default: fresh ones.

        Returns:
            The loss, and what was computed on the way.

        Raises:
            ValueError: If ``image`` has another shape or device or is empty.
            TypeError: If ``image`` has another dtype.
        """
        found = self._reconstruct(image, keys)
        return SlotAutoencoderOutput(
            found.loss, self._image(found.mixed), self._masks(found.masks), found.attn, found.slots
        )

    def losses(self, image: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What training needs: the loss of `forward`, and the masks' entropy in nats per pixel; scalars.

        Arguments and errors are those of `forward`.
        """
        found = self._reconstruct(image, keys)
        return found.loss, found.entropy

    def encode(
        self, image: Tensor, slots: Tensor | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Binds images to slots.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``.
            slots: The initial guess, ``[B, K, slot_size]`` with any K. Default: a draw, or learned queries.
            keys: Of that draw, ``[B, 2]`` int32. Default: fresh ones.

        Returns:
            The final slots, ``[B, K, slot_size]``, and the attention of every input over the slots,
            ``[B, N, K]``.

        Raises:
            ValueError: If a shape or device is wrong.
            TypeError: If a dtype is wrong.
        """
        check_image(image, self.config, self.dtype, self.device)
        if slots is not None:
            check_slots(slots, self.config, self.dtype, self.device, image.shape[0])
        return self._encode(self.whitening(image), slots, keys)

    def decode(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Paints what slots stand for.

        Args:
            slots: Final slots, ``[B, K, slot_size]``.

        Returns:
            What each slot would show alone, ``[B, K, C, S, S]``, not clamped, and the masks, a softmax over
            slots, ``[B, K, S, S]``; the reconstruction is the sum over the slots of their product.

        Raises:
            ValueError: If ``slots`` has another shape or device.
            TypeError: If ``slots`` has another dtype.
        """
        check_slots(slots, self.config, self.dtype, self.device)
        channels, log_masks = self._paint(slots)
        colours = from_patches(torch.stack(channels, 2), self.config.painted_size)
        return self._invert(colours), self._masks(log_masks.exp())

    @torch.no_grad()
    def reconstruct(
        self, image: Tensor, slots: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Passes images through the slots, ``[B, C, S, S]``, clamped to [0, 1]; arguments as of `encode`.

        Raises:
            ValueError: If a shape or device is wrong.
            TypeError: If a dtype is wrong.
        """
        channels, log_masks = self._paint(self.encode(image, slots, keys)[0])
        return self._image(_mixed(channels, log_masks.exp()))

    @torch.no_grad()
    def segment(
        self, image: Tensor, slots: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """The slot whose mask is the greatest at every pixel, ``[B, S, S]`` int64; arguments as of `encode`.

        Raises:
            ValueError: If a shape or device is wrong.
            TypeError: If a dtype is wrong.
        """
        log_masks = self._paint(self.encode(image, slots, keys)[0])[1]
        return mask_segmentation(self._masks(log_masks.exp())).long()

    @torch.no_grad()
    def look(self, image: Tensor, keys: Tensor | None = None) -> SlotAutoencoderLook:
        """All that can be seen of some images: reconstruction, masks, each slot's own image, attention.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``.
            keys: Of the initial slots, ``[B, 2]`` int32. Default: fresh ones.

        Raises:
            ValueError: If a shape or device is wrong.
            TypeError: If a dtype is wrong.
        """
        slots, attn = self.encode(image, keys=keys)
        channels, log_masks = self._paint(slots)
        masks = log_masks.exp()
        return SlotAutoencoderLook(
            self._image(_mixed(channels, masks)),
            self._masks(masks),
            self._image(torch.stack(channels, 2)),
            attn,
            slots,
        )

    @torch.no_grad()
    def residual(self, image: Tensor, slots: Tensor) -> Tensor:
        """The relative residual ``‖f(s) - s‖ / ‖f(s)‖`` of slots s, f being one step of slot attention.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``.
            slots: Final slots, ``[B, K, slot_size]``.

        Returns:
            One number per image, ``[B]``.

        Raises:
            ValueError: If a shape or device is wrong.
            TypeError: If a dtype is wrong.
        """
        check_image(image, self.config, self.dtype, self.device)
        check_slots(slots, self.config, self.dtype, self.device, image.shape[0])
        return self.slot_encoder.residual(self.encoder(self.whitening(image)), slots)

    @classmethod
    def check_change(cls, saved: SlotAutoencoderConfig, changed: SlotAutoencoderConfig) -> None:
        """Learned queries are of one number; see `PretrainedModel.check_change`."""
        check_num_slots(saved, changed)

    def _encode(
        self, colours: Tensor, slots: Tensor | None, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        noise = noise_of(keys, colours.shape[0], self.device)
        found: tuple[Tensor, Tensor] = self.slot_encoder(self.encoder(colours), slots, noise)
        return found

    def _reconstruct(self, image: Tensor, keys: Tensor | None) -> _Reconstruction:
        check_image(image, self.config, self.dtype, self.device)
        check_not_empty("image", image)
        colours = self.whitening(image)
        slots, attn = self._encode(colours, None, keys)
        channels, log_masks = self._paint(slots)
        masks = log_masks.exp()
        mixed = _mixed(channels, masks)
        target = to_patches(colours, self.config.painted_size)
        loss = (mixed - target.to(mixed.dtype)).square().mean()
        entropy = -(masks * log_masks).sum(1).mean()
        return _Reconstruction(loss, entropy, mixed, masks, attn, slots)

    def _paint(self, slots: Tensor) -> tuple[list[Tensor], Tensor]:
        """The channels of the slots' colours, and the logarithms of their masks, ``[B, K, G, P]`` each.

        In the dtype of sums.
        """
        *channels, logits = (part.to(wide_dtype(slots)) for part in self.decoder(slots))
        return channels, logits.log_softmax(1)

    def _image(self, patches: Tensor) -> Tensor:
        """The images of colours ``[..., C, G, P]``, clamped."""
        return self._invert(from_patches(patches, self.config.painted_size)).clamp(0, 1)

    def _invert(self, colours: Tensor) -> Tensor:
        """The images of colours in whatever dtype, in that of the parameters."""
        return self.whitening.invert(colours.to(self.whitening.mean.dtype))

    def _masks(self, patches: Tensor) -> Tensor:
        return from_patches(patches, self.config.painted_size)


class _Reconstruction(NamedTuple):
    """What `SlotAutoencoderOutput` follows from; mixed is ``[B, C, G, P]``, masks are ``[B, K, G, P]``."""

    loss: Tensor
    entropy: Tensor
    mixed: Tensor
    masks: Tensor
    attn: Tensor
    slots: Tensor


def _mixed(channels: list[Tensor], masks: Tensor) -> Tensor:
    """The reconstruction's colours, ``[B, C, G, P]``."""
    return torch.stack([(masks * channel).sum(1) for channel in channels], 1)
