"""SLATE in the form of the public code: eager, one-hot, uncached.

The oracle of `fastslots.SLATE` and the baseline of its benchmarks. Entries of the state dict, order of
the random draws and arithmetic are those of the public code: tokens are one-hot tensors of width 1 + V,
causal masks are entries of the state dict and filled in by hand, slot attention makes keys and values and
is differentiated through all iterations, and generation runs the whole prefix again for every token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslots.slate.config import SLATEConfig


class PublicOutput(NamedTuple):
    recon: Tensor
    cross_entropy: Tensor
    mse: Tensor
    attn: Tensor


class PublicSLATE(nn.Module):
    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        length, d_model = config.num_tokens, config.d_model
        self.vocab_size = config.vocab_size
        self.dvae = PublicDVAE(config)
        self.positional_encoder = Positions(1 + length, d_model, config.dropout)
        self.slot_attn = PublicSlotEncoder(config)
        self.dictionary = OneHotDictionary(1 + config.vocab_size, d_model)
        self.slot_proj = _linear(config.slot_size, d_model, bias=False)
        self.tf_dec = PublicDecoder(config)
        self.out = _linear(d_model, config.vocab_size, bias=False)

    def forward(self, image: Tensor, tau: float, hard: bool) -> PublicOutput:
        log_probs = F.log_softmax(self.dvae.encoder(image), dim=1)
        recon = self.dvae.decoder(gumbel_softmax(log_probs, tau, hard))
        mse = ((image - recon) ** 2).sum() / len(image)
        target = gumbel_softmax(log_probs, tau, hard=True).detach()
        target = target.flatten(2).transpose(1, 2)
        embeddings = self.positional_encoder(self.dictionary(behind_bos(target)))
        slots, attn = self.slot_attn(embeddings[:, 1:])
        log_prediction = torch.log_softmax(self.predict(embeddings[:, :-1], slots), dim=-1)
        cross_entropy = -(target * log_prediction).sum(dim=(1, 2)).mean()
        return PublicOutput(recon.clamp(0, 1), cross_entropy, mse, attn)

    def predict(self, embeddings: Tensor, slots: Tensor) -> Tensor:
        return self.out(self.tf_dec(embeddings, self.slot_proj(slots)))

    def tokenize(self, image: Tensor) -> Tensor:
        """Greedy tokens, one-hot, (B, N, V)."""
        greedy = self.dvae.encoder(image).argmax(dim=1).flatten(1)
        return F.one_hot(greedy, self.vocab_size).to(image.dtype)

    def encode(self, tokens: Tensor, slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
        embeddings = self.positional_encoder(self.dictionary(behind_bos(tokens)))
        return self.slot_attn(embeddings[:, 1:], slots)

    @torch.no_grad()
    def generate(self, slots: Tensor, num_tokens: int) -> Tensor:
        """Greedy tokens, one-hot, (B, N, V); every step runs the decoder on the whole prefix."""
        tokens = slots.new_zeros(len(slots), 0, self.vocab_size)
        for _ in range(num_tokens):
            embeddings = self.positional_encoder(self.dictionary(behind_bos(tokens)))
            best = self.predict(embeddings, slots)[:, -1:].argmax(dim=-1)
            tokens = torch.cat([tokens, F.one_hot(best, self.vocab_size).to(tokens)], dim=1)
        return tokens

    def decode(self, tokens: Tensor) -> Tensor:
        side = int(tokens.shape[1] ** 0.5)
        return self.dvae.decoder(tokens.transpose(1, 2).unflatten(2, (side, side)))

    @torch.no_grad()
    def reconstruct(self, image: Tensor, slots: Tensor | None = None) -> Tensor:
        tokens = self.tokenize(image)
        final_slots, _ = self.encode(tokens, slots)
        return self.decode(self.generate(final_slots, tokens.shape[1])).clamp(0, 1)


def behind_bos(tokens: Tensor) -> Tensor:
    """One-hot tokens (B, L, V) to (B, 1 + L, 1 + V), where class 0 begins the sequence."""
    widened = F.pad(tokens, (1, 0, 1, 0))
    widened[:, 0, 0] = 1.0
    return widened


def gumbel_softmax(log_probs: Tensor, tau: float, hard: bool) -> Tensor:
    tiny = torch.finfo(log_probs.dtype).tiny
    noise = -(torch.empty_like(log_probs).exponential_() + tiny).log()
    soft = F.softmax((log_probs + noise) / tau, dim=1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


class PublicDVAE(nn.Module):
    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            ConvBlock(config.image_channels, 64, 4, stride=4),
            *[ConvBlock(64, 64) for _ in range(6)],
            _conv(64, config.vocab_size),
        )
        self.decoder = nn.Sequential(
            ConvBlock(config.vocab_size, 64),
            *self._double_side(),
            *self._double_side(),
            _conv(64, config.image_channels),
        )

    @staticmethod
    def _double_side() -> list[nn.Module]:
        convs = [ConvBlock(64, 64, 3), ConvBlock(64, 64), ConvBlock(64, 64), ConvBlock(64, 256)]
        return [*convs, nn.PixelShuffle(2)]


class ConvBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.m = nn.Conv2d(c_in, c_out, size, stride, size // 2 if stride == 1 else 0, bias=False)
        nn.init.kaiming_uniform_(self.m.weight, nonlinearity="relu")
        self.weight = nn.Parameter(torch.ones(c_out))
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.group_norm(self.m(x), 1, self.weight, self.bias))


class OneHotDictionary(nn.Module):
    def __init__(self, classes: int, d_model: int) -> None:
        super().__init__()
        self.dictionary = nn.Embedding(classes, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dictionary(tokens.argmax(dim=-1))


class Positions(nn.Module):
    def __init__(self, length: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, length, d_model)))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe[:, : x.shape[1]])


class PublicSlotEncoder(nn.Module):
    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.num_slots, self.slot_size = config.num_slots, config.slot_size
        self.layer_norm = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            _linear(d_model, d_model, relu=True), nn.ReLU(), _linear(d_model, d_model)
        )
        self.slot_mu = nn.Parameter(nn.init.xavier_uniform_(torch.zeros(1, 1, self.slot_size)))
        self.slot_log_sigma = nn.Parameter(
            nn.init.xavier_uniform_(torch.zeros(1, 1, self.slot_size))
        )
        self.slot_attention = PublicSlotAttention(config)

    def forward(self, x: Tensor, slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if slots is None:
            noise = x.new_empty(len(x), self.num_slots, self.slot_size).normal_()
            slots = self.slot_mu + self.slot_log_sigma.exp() * noise
        return self.slot_attention(self.mlp(self.layer_norm(x)), slots)


class PublicSlotAttention(nn.Module):
    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        size = config.slot_size
        self.num_iterations, self.epsilon = config.num_iterations, config.epsilon
        self.num_heads = config.num_slot_heads
        self.norm_inputs = nn.LayerNorm(config.d_model)
        self.norm_slots = nn.LayerNorm(size)
        self.norm_mlp = nn.LayerNorm(size)
        self.project_q = _linear(size, size, bias=False)
        self.project_k = _linear(config.d_model, size, bias=False)
        self.project_v = _linear(config.d_model, size, bias=False)
        self.gru = nn.GRUCell(size, size)
        nn.init.xavier_uniform_(self.gru.weight_ih)
        nn.init.orthogonal_(self.gru.weight_hh)
        nn.init.zeros_(self.gru.bias_ih)
        nn.init.zeros_(self.gru.bias_hh)
        hidden = config.mlp_hidden_size
        self.mlp = nn.Sequential(_linear(size, hidden, relu=True), nn.ReLU(), _linear(hidden, size))

    def forward(self, inputs: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.norm_inputs(inputs)
        k, v = (
            _split(project(inputs), self.num_heads) for project in (self.project_k, self.project_v)
        )
        k = k * k.shape[-1] ** -0.5
        for _ in range(self.num_iterations):
            slots, attn = self.step(k, v, slots)
        return slots, attn

    def step(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        q = _split(self.project_q(self.norm_slots(slots)), self.num_heads)
        logits = (k @ q.transpose(-1, -2)).transpose(1, 2)  # (B, N, H, K)
        attn = F.softmax(logits.flatten(2), dim=-1).view_as(logits).transpose(1, 2)
        weights = attn + self.epsilon
        weights = weights / weights.sum(dim=-2, keepdim=True)
        updates = (weights.transpose(-1, -2) @ v).transpose(1, 2).flatten(2)
        slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots + self.mlp(self.norm_mlp(slots)), attn.sum(dim=1)


class PublicDecoder(nn.Module):
    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PublicBlock(config, is_first=i == 0) for i in range(config.num_decoder_blocks)
        )
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, slots)
        return self.layer_norm(x)


class PublicBlock(nn.Module):
    def __init__(self, config: SLATEConfig, is_first: bool) -> None:
        super().__init__()
        length, d_model = config.num_tokens, config.d_model
        gain = (3 * config.num_decoder_blocks) ** -0.5
        self.is_first = is_first
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.self_attn = PublicAttention(config, gain)
        future = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)
        self.self_attn_mask = nn.Parameter(future, requires_grad=False)
        self.encoder_decoder_attn_layer_norm = nn.LayerNorm(d_model)
        self.encoder_decoder_attn = PublicAttention(config, gain)
        self.ffn_layer_norm = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            _linear(d_model, 4 * d_model, relu=True),
            nn.ReLU(),
            _linear(4 * d_model, d_model, gain=gain),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        length = x.shape[1]
        normed = self.self_attn_layer_norm(x)
        if self.is_first:
            x = normed
        x = x + self.self_attn(normed, normed, self.self_attn_mask[:length, :length])
        x = x + self.encoder_decoder_attn(self.encoder_decoder_attn_layer_norm(x), slots)
        return x + self.ffn(self.ffn_layer_norm(x))


class PublicAttention(nn.Module):
    def __init__(self, config: SLATEConfig, gain: float) -> None:
        super().__init__()
        d_model = config.d_model
        self.num_heads = config.num_decoder_heads
        self.attn_dropout = nn.Dropout(config.dropout)
        self.output_dropout = nn.Dropout(config.dropout)
        self.proj_q = _linear(d_model, d_model, bias=False)
        self.proj_k = _linear(d_model, d_model, bias=False)
        self.proj_v = _linear(d_model, d_model, bias=False)
        self.proj_o = _linear(d_model, d_model, bias=False, gain=gain)

    def forward(self, x: Tensor, source: Tensor, hidden: Tensor | None = None) -> Tensor:
        q = _split(self.proj_q(x), self.num_heads)
        k = _split(self.proj_k(source), self.num_heads)
        v = _split(self.proj_v(source), self.num_heads)
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        if hidden is not None:
            logits = logits.masked_fill(hidden, float("-inf"))
        attn = self.attn_dropout(F.softmax(logits, dim=-1))
        return self.output_dropout(self.proj_o((attn @ v).transpose(1, 2).flatten(2)))


def _split(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, D) to (B, H, L, D / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _linear(
    size_in: int, size_out: int, bias: bool = True, gain: float = 1.0, relu: bool = False
) -> nn.Linear:
    layer = nn.Linear(size_in, size_out, bias)
    if relu:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, 1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
