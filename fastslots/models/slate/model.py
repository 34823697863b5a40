"""SLATE: a dVAE's tokens, slot attention over them, and a transformer that reads the slots."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fastslots.initialization import linear
from fastslots.models import state_dicts
from fastslots.models.checks import (
    check_image,
    check_not_empty,
    check_num_slots,
    check_slots,
    noise_of,
)
from fastslots.models.precision import wide_dtype
from fastslots.models.pretrained import PretrainedModel
from fastslots.models.slate import official
from fastslots.models.slate.checks import check_ids
from fastslots.models.slate.config import SLATEConfig
from fastslots.models.slate.cross_entropy import token_cross_entropy
from fastslots.models.slate.decoder import PositionalEncoding, TokenDictionary, TransformerDecoder
from fastslots.models.slate.dvae import DVAE
from fastslots.models.slate.generation import TokenPredictor, generate_tokens
from fastslots.models.slate.outputs import SLATELook, SLATEOutput
from fastslots.models.slate.token_sampling import likeliest_tokens, sample_tokens
from fastslots.models.slot_encoder import SlotEncoder
from fastslots.models.whitening import Whitening
from fastslots.noise import Noise
from fastslots.pictures import segmentation
from fastslots_kernels.checks import check_choice, check_number

LEAST_TAU = 1e-30
"""Logits divided by less overflow float32."""


class SLATE(PretrainedModel):
    """Learns slots by predicting an image's tokens from them, one after the other.

    In training mode the tokens are drawn with Gumbel noise and dropout is on. Eval mode has
    neither: tokens are greedy and the relaxed tokens are the tempered softmax itself, so all that is
    random is the draw of the initial slots.

    All noise follows from one key per image (see `fastslots.noise`), so that an image's does not depend
    on the batch, the process or the device. Without keys, methods draw fresh ones from torch's global
    generator.

    Args:
        config: The settings.

    Raises:
        TypeError: If ``config`` is no ``SLATEConfig``.

    Source:
        Singh et al. 2022, "Illiterate DALL-E Learns to Compose" (SLATE).
    """

    config: SLATEConfig
    kind = "SLATE"
    config_class = SLATEConfig
    load_advice = "; weights of the public SLATE code load with SLATE.from_official"

    def __init__(self, config: SLATEConfig) -> None:
        super().__init__(config)
        d_model = config.d_model
        self.whitening = Whitening(config.image_shape) if config.whiten else None
        self.dvae = DVAE(config.vocab_size, config.image_channels)
        self.positional_encoder = PositionalEncoding(
            config.grid_size, d_model, config.dropout, config.position_init
        )
        self.slot_attn = SlotEncoder(config, d_model)
        self.dictionary = TokenDictionary(config.vocab_size, d_model)
        self.slot_proj = linear(config.slot_size, d_model, bias=False)
        self.tf_dec = TransformerDecoder(
            config.num_decoder_blocks,
            d_model,
            config.num_decoder_heads,
            config.dropout,
            config.backend,
        )
        self.out = linear(d_model, config.vocab_size, bias=False)

    def forward(
        self,
        image: Tensor,
        tau: float | Tensor = 1.0,
        hard: bool = False,
        keys: Tensor | None = None,
    ) -> SLATEOutput:
        """Computes both losses of a batch; their sum is what SLATE minimises.

        No gradient couples the dVAE with the rest: slots and transformer see tokens of their own.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``, in the parameters' dtype.
            tau: Temperature of the dVAE's relaxed tokens, at least 1e-30. A scalar tensor, which is not
                checked, lets ``torch.compile`` take any value without compiling again.
            hard: Decodes one-hot tokens, with the gradient of the relaxed ones.
            keys: Of the noise, ``[B, 2]`` int32. Default: fresh ones.

        Returns:
            The losses, and what was computed on the way.

        Raises:
            ValueError: If ``image`` has another shape or device or is empty, or ``tau`` is below its least.
            TypeError: If ``image`` has another dtype, or ``tau`` is no number.
        """
        check_image(image, self.config, self.dtype, self.device)
        check_not_empty("image", image)
        if not isinstance(tau, Tensor):
            tau = check_number("tau", tau, least=LEAST_TAU)
        noise = noise_of(keys, image.shape[0], self.device)
        colours = self._colours(image)
        tokens = sample_tokens(
            self.dvae.features(colours),
            self.dvae.token_weights(),
            tau,
            hard,
            noise if self.training else None,
            self.config.backend,
            self.config.draw_tokens,
        )
        painted = self.dvae.decode(tokens.decoded)
        wide = wide_dtype(image)
        mse = (colours.to(wide) - painted.to(wide)).square().sum() / image.shape[0]

        embeddings = self._embed(tokens.ids, noise)
        slots, attn = self.slot_attn(embeddings[:, 1:], None, noise)
        features = self._features(embeddings[:, :-1], slots, noise)
        cross_entropy = self._cross_entropy(features, tokens.ids) / image.shape[0]
        recon = self._image(painted).clamp(0, 1)
        return SLATEOutput(cross_entropy, mse, recon, attn, tokens.ids, slots)

    @torch.no_grad()
    def tokenize(self, image: Tensor) -> Tensor:
        """The dVAE's greedy tokens ``[B, N]`` int64 of ``image``, ``[B, C, S, S]`` in [0, 1].

        Raises:
            ValueError: If ``image`` has another shape or device.
            TypeError: If ``image`` has another dtype.
        """
        check_image(image, self.config, self.dtype, self.device)
        return likeliest_tokens(self.dvae.features(self._colours(image)), self.dvae.token_weights())

    @torch.no_grad()
    def detokenize(self, ids: Tensor) -> Tensor:
        """The dVAE's images ``[B, C, S, S]`` of tokens, not clamped.

        Args:
            ids: Tokens in [0, V), ``[B, N]`` int64.

        Raises:
            ValueError: If a shape or device is wrong or a token is out of range.
            TypeError: If the dtype is wrong.
        """
        check_ids(ids, self.config, self.device)
        return self._paint(ids)

    def encode(
        self, ids: Tensor, slots: Tensor | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Binds tokens to slots.

        Args:
            ids: Tokens in [0, V), ``[B, N]`` int64.
            slots: The initial guess, ``[B, K, slot_size]`` with any K. Default: a draw.
            keys: Of the noise, ``[B, 2]`` int32. Default: fresh ones.

        Returns:
            The final slots, ``[B, K, slot_size]``, and the attention of every token over the slots,
            ``[B, N, K]``.

        Raises:
            ValueError: If a shape or device is wrong or a token is out of range.
            TypeError: If a dtype is wrong.
        """
        check_ids(ids, self.config, self.device)
        if slots is not None:
            check_slots(slots, self.config, self.dtype, self.device, ids.shape[0])
        noise = noise_of(keys, ids.shape[0], self.device)
        final_slots, attn = self.slot_attn(self._embed(ids, noise)[:, 1:], slots, noise)
        return final_slots, attn

    def token_cross_entropy(
        self,
        ids: Tensor,
        slots: Tensor,
        keys: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Teacher-forced cross-entropy of tokens given slots.

        Args:
            ids: Tokens in [0, V), ``[B, N]`` int64.
            slots: Final slots, ``[B, K, slot_size]``.
            keys: Of the noise, ``[B, 2]`` int32. Default: fresh ones.
            reduction: ``"mean"`` over the batch, or ``"none"``.

        Returns:
            Nats, summed over an image's tokens: a scalar, or ``[B]``.

        Raises:
            ValueError: If a shape or device is wrong, the batch empty, a token out of range, or ``reduction``
                none of the two.
            TypeError: If a dtype is wrong.
        """
        check_ids(ids, self.config, self.device)
        check_not_empty("ids", ids)
        check_slots(slots, self.config, self.dtype, self.device, ids.shape[0])
        check_choice("reduction", reduction, ("mean", "none"))
        noise = noise_of(keys, ids.shape[0], self.device) if self.training else None
        features = self._features(self._embed(ids, noise)[:, :-1], slots, noise)
        if reduction == "mean":
            return self._cross_entropy(features, ids) / ids.shape[0]
        images = zip(features.split(1), ids.split(1), strict=True)
        return torch.stack([self._cross_entropy(*image) for image in images])

    @torch.no_grad()
    def generate(self, slots: Tensor) -> Tensor:
        """Generates tokens from slots, each the likeliest given those before it.

        Dropout is off in either mode.

        Args:
            slots: Final slots, ``[B, K, slot_size]``.

        Returns:
            Tokens in [0, V), ``[B, N]`` int64.

        Raises:
            ValueError: If ``slots`` has another shape or device.
            TypeError: If ``slots`` has another dtype.
        """
        check_slots(slots, self.config, self.dtype, self.device)
        predictor = TokenPredictor(self.tf_dec, self.dictionary, self.positional_encoder, self.out)
        return generate_tokens(predictor, self.slot_proj(slots), self.config.num_tokens)

    @torch.no_grad()
    def reconstruct(
        self, image: Tensor, slots: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Passes images through the slots: tokenise, encode, generate, decode.

        Dropout is off in either mode.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``.
            slots: The initial guess, ``[B, K, slot_size]`` with any K. Default: a draw.
            keys: Of that draw, ``[B, 2]`` int32. Default: fresh ones.

        Returns:
            Images, ``[B, C, S, S]``, clamped to [0, 1].

        Raises:
            ValueError: If a shape or device is wrong.
            TypeError: If a dtype is wrong.
        """
        final_slots, _ = self._bind(image, slots, keys)
        return self._paint(self.generate(final_slots)).clamp(0, 1)

    @torch.no_grad()
    def segment(
        self, image: Tensor, slots: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """The slot that attends most to the token at every pixel, ``[B, S, S]`` int64.

        Arguments, errors and dropout are as of `reconstruct`; there may be 256 slots at most.
        """
        attn = self._bind(image, slots, keys)[1]
        return segmentation(attn, self.config.image_size).long()

    @torch.no_grad()
    def look(self, image: Tensor, keys: Tensor | None = None) -> SLATELook:
        """All that can be seen of some images: tokens, slots, attention, both reconstructions.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``.
            keys: Of the initial slots, ``[B, 2]`` int32. Default: fresh ones.

        Raises:
            ValueError: If a shape or device is wrong.
            TypeError: If a dtype is wrong.
        """
        ids = self.tokenize(image)
        slots, attn = self.encode(ids, keys=keys)
        through_slots = self._paint(self.generate(slots)).clamp(0, 1)
        return SLATELook(ids, slots, attn, self._paint(ids), through_slots)

    @torch.no_grad()
    def residual(self, ids: Tensor, slots: Tensor) -> Tensor:
        """The relative residual ``‖f(s) - s‖ / ‖f(s)‖`` of slots s, f being one step of slot attention.

        Args:
            ids: Tokens in [0, V), ``[B, N]`` int64.
            slots: Final slots, ``[B, K, slot_size]``.

        Returns:
            One number per image, ``[B]``; without dropout in eval mode.
        """
        return self.slot_attn.residual(self._embed(ids, None)[:, 1:], slots)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Any], **config: Any) -> Self:
        """Builds a model from the state dict, or the checkpoint, of the public SLATE code.

        Args:
            state_dict: The public model's state dict, or a dict that holds it as ``"model"``,
                ``"state_dict"`` or ``"model_state_dict"``. Names may have prefixes as in `from_pretrained`.
            **config: Settings of ``SLATEConfig``. Widths, depth, vocabulary and image size come
                from the shapes; ``num_slots``, ``num_iterations``, ``num_decoder_heads``,
                ``num_slot_heads`` and ``gradient`` cannot, and one left out takes its default with
                a warning. The public model is ``gradient="unrolled"``.

        Returns:
            A model equal to the public one, in its dtype (of several as in `from_pretrained`), on PyTorch's
            default device and in eval mode.

        Raises:
            ValueError: If a setting contradicts the shapes or is unknown, an entry is missing, unexpected,
                misshaped, without values or of a dtype that no model runs in, or there are several models.
            TypeError: If ``state_dict`` maps no names to tensors.
        """
        settings, entries = official.read_official(state_dict, config)
        model = cls(settings)
        advice = official.HINT + official.ADVICE
        state_dicts.fill(model, entries, "the state dict", advice, official.NAMES)
        return model.eval()

    @classmethod
    def check_change(cls, saved: SLATEConfig, changed: SLATEConfig) -> None:
        """Learned queries are of one number; see `PretrainedModel.check_change`."""
        check_num_slots(saved, changed)

    def _bind(
        self, image: Tensor, slots: Tensor | None, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Slots and attention of images, without dropout."""
        ids = self.tokenize(image)
        if slots is not None:
            check_slots(slots, self.config, self.dtype, self.device, ids.shape[0])
        embeddings = self.positional_encoder(self.dictionary(ids))
        noise = noise_of(keys, ids.shape[0], self.device)
        final_slots, attn = self.slot_attn(embeddings[:, 1:], slots, noise)
        return final_slots, attn

    def _colours(self, image: Tensor) -> Tensor:
        """An image as the dVAE sees it."""
        return image if self.whitening is None else self.whitening(image)

    def _image(self, colours: Tensor) -> Tensor:
        """The image of what the dVAE paints, not clamped."""
        if self.whitening is None:
            return colours
        return self.whitening.invert(colours.to(self.whitening.mean.dtype))

    def _paint(self, ids: Tensor) -> Tensor:
        return self._image(self.dvae.decode_ids(ids))

    def _embed(self, ids: Tensor, noise: Noise | None) -> Tensor:
        embeddings: Tensor = self.positional_encoder(
            self.dictionary(ids), noise if self.training else None
        )
        return embeddings

    def _features(self, embeddings: Tensor, slots: Tensor, noise: Noise | None) -> Tensor:
        """What predicts each token, ``[B, N, d_model]``, of the embeddings of those before it."""
        features: Tensor = self.tf_dec(
            embeddings, self.slot_proj(slots), noise if self.training else None
        )
        return features

    def _cross_entropy(self, features: Tensor, ids: Tensor) -> Tensor:
        return token_cross_entropy(features, self.out, ids, self.config.backend)
