"""What is measured on a GPU, in parts that take a minute or two each, and are skipped once measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastslots.benchmark.cases import Case, preset
from fastslots.benchmark.package import PACKAGE
from fastslots.benchmark.prepare import Progress
from fastslots.benchmark.providers import BACKENDS, MODES, Provider, sort_out
from fastslots.benchmark.results import Results
from fastslots.benchmark.runner import run_benchmark

SUITES = ("core", "rest")
FEW_AND_MANY = (1, 127)  # what is compared: the implicit gradient's cost must not grow
CORE = {
    "slate128": (3, 7),
    "clevr": (3,),
}  # the numbers of iterations of the papers, and of the check
REST = {"slate64": (3, 7), "slate96": (3, 7), "dinosaur": (3,), "dinosaur24": (3,), "long": (3,)}
FLAT = "flat-"  # begins the names of the parts that compare FEW_AND_MANY
TINY = {
    "batch": 2,
    "num_inputs": 12,
    "input_size": 8,
    "num_slots": 3,
    "slot_size": 8,
    "mlp_hidden_size": 8,
}

_REPLAYED = ("no-grad", "implicit")
_EAGER_AND_REPLAYED = (
    *(Provider(backend, gradient) for gradient in MODES for backend in BACKENDS),
    *(Provider(backend, gradient, graphed=True) for gradient in _REPLAYED for backend in BACKENDS),
    *(Provider(PACKAGE, gradient) for gradient in ("unrolled", "no-grad")),
)
_COMPILED = tuple(
    Provider(backend, gradient, compiled=True, graphed=True)
    for gradient in _REPLAYED
    for backend in ("reference", "torch")
)
# With what the speed-ups compare: the fused kernels, and the eager reference in every round.
_COMPILED_AND_OURS = (
    *(Provider("reference", gradient) for gradient in _REPLAYED),
    *(Provider("triton", gradient, graphed=True) for gradient in _REPLAYED),
    *_COMPILED,
)
_FLAT = (
    Provider("reference", "implicit"),
    Provider("triton", "implicit"),
    Provider("triton", "implicit", graphed=True),
)


@dataclass(frozen=True)
class Part:
    """A case and how it is measured; its results are a file of that name.

    Args:
        name: Of the part, and of its case.
        suite: Of `SUITES`.
        case: What.
        providers: How to compute; those that cannot run are skipped with their reasons.
        repeats: See `run_benchmark`, as for the limits.
    """

    name: str
    suite: str
    case: Case
    providers: tuple[Provider, ...] = (*_EAGER_AND_REPLAYED, *_COMPILED)
    repeats: int = 20
    time_limit_s: float = 12.0
    compile_limit_s: float = 120.0
    energy_s: float = 2.0

    def tiny(self) -> Part:
        """The same with tensors that take no time, and nothing compiled."""
        few = self.case.iterations[:1] + self.case.iterations[-1:]
        case = replace(self.case, **TINY, iterations=tuple(min(count, 2) for count in few))  # type: ignore[arg-type]
        return replace(self, case=case, repeats=3, time_limit_s=0, compile_limit_s=0, energy_s=0)

    def measure(
        self, device: torch.device, commit: str | None = None, progress: Progress = lambda _: None
    ) -> Results:
        """Measures the part.

        Args:
            device: Where.
            commit: Of the sources; None: that of their git checkout.
            progress: Called with what is done next.
        """
        providers, skipped = sort_out(self.providers, device)
        results = run_benchmark(
            [self.case],
            providers,
            device,
            skipped=skipped,
            repeats=self.repeats,
            time_limit_s=self.time_limit_s,
            compile_limit_s=self.compile_limit_s,
            energy_s=self.energy_s,
            progress=progress,
        )
        if commit is None:
            return results
        return replace(
            results, environment={**results.environment, "commit": commit, "dirty": False}
        )


def is_measured(path: Path, commit: str | None, device: str) -> bool:
    """Whether a file holds results of this commit, nothing that differed from it, and this device."""
    if commit is None or not path.exists():
        return False
    environment = Results.load(path).environment
    here = (environment["commit"], environment["device"]) == (commit, device)
    return here and not environment["dirty"]


def choose_parts(names: list[str] | None = None) -> list[Part]:
    """Parts by name, or all of a suite by the suite's; the most important ones first.

    Raises:
        ValueError: If there is no part or suite of that name.
    """
    names = names or ["core"]
    unknown = sorted(set(names) - {*SUITES, *PARTS})
    if unknown:
        raise ValueError(f"parts must be of {(*SUITES, *PARTS)}; got {unknown}")
    return [part for part in PARTS.values() if {part.name, part.suite} & set(names)]


def _part(shape: str, precision: str) -> Part:
    """All providers on a shape."""
    name = f"{shape}-{precision}"
    if shape in CORE and precision == "bf16":
        return Part(name, "core", _focused(shape, name, precision))
    if shape in CORE and precision == "tf32":  # the core suite is to stay short
        case = _focused(shape, name, precision)
        return Part(name, "core", case, _EAGER_AND_REPLAYED, energy_s=0)
    return Part(name, "rest", _focused(shape, name, precision))


def _compiled_part(shape: str) -> Part:
    """What the core suite leaves out in tf32: the compiled forms, at the numbers of iterations of papers."""
    name = f"{shape}-tf32-compiled"
    case = _focused(shape, name, "tf32")
    case = replace(case, iterations=CORE[shape])
    return Part(name, "rest", case, _COMPILED_AND_OURS)


def _focused(shape: str, name: str, precision: str) -> Case:
    (case,) = preset(shape)
    return replace(case, name=name, precision=precision, focus={**CORE, **REST}[shape])


def _flat_part(shape: str) -> Part:
    """The implicit gradient at few and many iterations, in many rounds."""
    name = f"{FLAT}{shape}-bf16"
    (case,) = preset(shape)
    case = replace(case, name=name, precision="bf16", iterations=FEW_AND_MANY)
    return Part(name, "core", case, _FLAT, repeats=50, energy_s=0)


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        *(_part(shape, "bf16") for shape in CORE),
        *(_flat_part(shape) for shape in CORE),
        *(_part(shape, "tf32") for shape in CORE),
        *(_compiled_part(shape) for shape in CORE),
        *(_part(shape, precision) for precision in ("bf16", "tf32") for shape in REST),
        *(_part(shape, "ieee") for shape in (*CORE, *REST)),
    )
}
