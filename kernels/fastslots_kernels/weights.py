"""The tensors of one slot-attention step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fastslots_kernels.layers import parameter_of, why_module_called


@dataclass(frozen=True)
class SlotAttentionWeights:
    """Weights of one slot-attention step, named after the modules of the paper's Figure 2.

    With ``C`` the input width, ``D`` the slot width and ``M`` the hidden width of the MLP. All tensors
    share one floating dtype and one device.

    Attributes:
        norm_inputs_weight: LayerNorm of the inputs, scale, ``[C]``.
        norm_inputs_bias: LayerNorm of the inputs, shift, ``[C]``.
        norm_slots_weight: LayerNorm of the slots before the query projection, scale, ``[D]``.
        norm_slots_bias: The same, shift, ``[D]``.
        norm_mlp_weight: LayerNorm before the MLP, scale, ``[D]``.
        norm_mlp_bias: The same, shift, ``[D]``.
        project_q: Query projection, ``[D, D]``.
        project_k: Key projection, ``[D, C]``.
        project_v: Value projection, ``[D, C]``.
        gru_weight_ih: Input weights of the GRU, ``[3 D, D]``, gates in the order reset, update, new.
        gru_weight_hh: Hidden weights of the GRU, ``[3 D, D]``.
        gru_bias_ih: Input bias of the GRU, ``[3 D]``.
        gru_bias_hh: Hidden bias of the GRU, ``[3 D]``.
        mlp_0_weight: First layer of the MLP, ``[M, D]``.
        mlp_0_bias: The same, bias, ``[M]``.
        mlp_2_weight: Second layer of the MLP (a ReLU stands between), ``[D, M]``.
        mlp_2_bias: The same, bias, ``[D]``.
        norm_inputs_eps: Added to the variance of the inputs (dimensionless).
        norm_slots_eps: Added to the variance of the slots.
        norm_mlp_eps: Added to the variance of the slots before the MLP.
    """

    norm_inputs_weight: Tensor
    norm_inputs_bias: Tensor
    norm_slots_weight: Tensor
    norm_slots_bias: Tensor
    norm_mlp_weight: Tensor
    norm_mlp_bias: Tensor
    project_q: Tensor
    project_k: Tensor
    project_v: Tensor
    gru_weight_ih: Tensor
    gru_weight_hh: Tensor
    gru_bias_ih: Tensor
    gru_bias_hh: Tensor
    mlp_0_weight: Tensor
    mlp_0_bias: Tensor
    mlp_2_weight: Tensor
    mlp_2_bias: Tensor
    norm_inputs_eps: float = 1e-5
    norm_slots_eps: float = 1e-5
    norm_mlp_eps: float = 1e-5

    @classmethod
    def from_module(cls, module: nn.Module) -> SlotAttentionWeights:
        """Reads the weights of any module that uses the parameter names of Figure 2.

        Args:
            module: Holds ``norm_inputs, norm_slots, norm_mlp`` (LayerNorm), ``project_q, project_k,
                project_v`` (Linear without bias), ``gru`` (GRUCell) and ``mlp`` (``mlp[0]`` and
                ``mlp[2]`` Linear, ReLU between).

        Raises:
            ValueError: If one of them is missing, lacks a tensor, or computes something else than its
                tensors say: hooks, a ``forward`` of its own (as adapters have), other layers in the MLP.
        """
        why = why_module_called(module)
        if why is not None:
            raise ValueError(
                f"module must compute what its tensors say; got a {_name(module)} whose {why}: pass the "
                "module itself to slot_attention, which calls its layers"
            )
        return cls.read(module)

    @classmethod
    def read(cls, module: nn.Module) -> SlotAttentionWeights:
        """`from_module` of a module whose layers need no call.

        Raises:
            ValueError: If a layer is missing or lacks a tensor.
        """
        values: dict[str, Any] = {}
        for path, names in _READ:
            layer: Any = module
            for part in path.split("."):
                layer = getattr(layer, "_modules", {}).get(part)
            for field, name in names:
                value = values[field] = parameter_of(layer, name)
                if not isinstance(value, Tensor):
                    raise ValueError(
                        f"module must have the parameter '{path}.{name}'; {_name(module)} has none"
                    )
            if path.startswith("norm"):
                values[f"{path}_eps"] = layer.eps
        return cls(**values)

    @classmethod
    def from_tensors(
        cls,
        tensors: Iterable[Tensor],
        norm_eps: tuple[float, float, float] = (1e-5, 1e-5, 1e-5),
    ) -> SlotAttentionWeights:
        """The inverse of `named_tensors` and `norm_eps`: tensors in the order of the fields."""
        values: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
        inputs, slots, mlp = norm_eps
        return cls(**values, norm_inputs_eps=inputs, norm_slots_eps=slots, norm_mlp_eps=mlp)

    @property
    def input_size(self) -> int:
        """``C``, the width of the inputs."""
        return self.norm_inputs_weight.shape[-1]

    @property
    def slot_size(self) -> int:
        """``D``, the width of the slots."""
        return self.norm_slots_weight.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of all tensors."""
        return self.project_q.dtype

    @property
    def norm_eps(self) -> tuple[float, float, float]:
        """The epsilons of the LayerNorms: of the inputs, of the slots, before the MLP."""
        return self.norm_inputs_eps, self.norm_slots_eps, self.norm_mlp_eps

    def named_tensors(self) -> dict[str, Tensor]:
        """The tensors by field name, in order."""
        return {name: getattr(self, name) for name in TENSORS}

    def to(self, dtype: torch.dtype) -> SlotAttentionWeights:
        """The same weights in another dtype; gradients flow to these."""
        if self.dtype == dtype:
            return self
        tensors = [tensor.to(dtype) for tensor in self.named_tensors().values()]
        return self.from_tensors(tensors, self.norm_eps)

    def check(self) -> None:
        """Raises ValueError if shapes, dtypes or devices disagree, naming the tensor and the rule."""
        c, d = self.input_size, self.slot_size
        m = self.mlp_0_bias.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            "norm_inputs_weight": (c,),
            "norm_inputs_bias": (c,),
            "norm_slots_weight": (d,),
            "norm_slots_bias": (d,),
            "norm_mlp_weight": (d,),
            "norm_mlp_bias": (d,),
            "project_q": (d, d),
            "project_k": (d, c),
            "project_v": (d, c),
            "gru_weight_ih": (3 * d, d),
            "gru_weight_hh": (3 * d, d),
            "gru_bias_ih": (3 * d,),
            "gru_bias_hh": (3 * d,),
            "mlp_0_weight": (m, d),
            "mlp_0_bias": (m,),
            "mlp_2_weight": (d, m),
            "mlp_2_bias": (d,),
        }
        for name, tensor in self.named_tensors().items():
            if tuple(tensor.shape) != shapes[name]:
                raise ValueError(
                    f"weights.{name} must have shape {shapes[name]} (input width {c}, slot width {d}, "
                    f"MLP width {m}); got {tuple(tensor.shape)}"
                )
            for what in ("dtype", "device"):
                if getattr(tensor, what) != getattr(self.project_q, what):
                    raise ValueError(
                        f"weights.{name} must have the {what} of weights.project_q, "
                        f"{getattr(self.project_q, what)}; got {getattr(tensor, what)}"
                    )


# By name, once: torch.compile cannot trace `fields` of a class.
TENSORS = tuple(field.name for field in fields(SlotAttentionWeights) if field.type == "Tensor")

# The layers of Figure 2 by path, each with fields and the tensors that these are.
_READ: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    *(
        (norm, ((f"{norm}_weight", "weight"), (f"{norm}_bias", "bias")))
        for norm in ("norm_inputs", "norm_slots", "norm_mlp")
    ),
    *((f"project_{p}", ((f"project_{p}", "weight"),)) for p in "qkv"),
    ("gru", tuple((f"gru_{n}", n) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))),
    *((f"mlp.{i}", ((f"mlp_{i}_weight", "weight"), (f"mlp_{i}_bias", "bias"))) for i in (0, 2)),
)


def _name(module: nn.Module) -> str:
    return type(module).__name__
