import pytest

from fastslots.benchmark import (
    Provider,
    choose_providers,
)
from fastslots.benchmark.attention import cases, providers
from fastslots_kernels.backends import ResolvedBackend
from tests.benchmark.attention.cases import CPU, CUDA

pytestmark = pytest.mark.slow


def no_triton(backend):
    if backend == "triton":
        raise RuntimeError("backend 'triton' cannot run: no GPU")
    return ResolvedBackend(backend, "asked for by name")


def test_lists_a_backend_that_cannot_run_with_its_reason(monkeypatch):
    monkeypatch.setattr(providers, "resolve_backend", no_triton)
    chosen, skipped = choose_providers(CPU, compiled=False)
    assert [p.backend for p in chosen] == ["reference", "reference", "torch", "torch"]
    assert [(s.provider, s.reason) for s in skipped] == [
        ("triton", "backend 'triton' cannot run: no GPU")
    ]


def test_a_backend_asked_for_by_name_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setattr(providers, "resolve_backend", no_triton)
    with pytest.raises(RuntimeError, match="no GPU"):
        choose_providers(CPU, ["triton"])


def test_interpreted_kernels_are_not_measured(monkeypatch):
    monkeypatch.setattr(
        providers, "resolve_backend", lambda name: ResolvedBackend(name, "interpreter")
    )
    with pytest.raises(RuntimeError, match="'triton' cannot be measured on a CPU"):
        choose_providers(CPU, ["triton"])
    assert [s.provider for s in choose_providers(CPU)[1]] == ["triton"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backends": ["jax"]}, r"backend must be one or more of .*; got \['jax'\]"),
        ({"backends": []}, r"backend must be one or more of .*; got \[\]"),
        ({"gradients": ["neumann"]}, r"gradient must be one or more of .*; got \['neumann'\]"),
    ],
)
def test_rejects_unknown_providers(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_providers(CPU, **arguments)


def test_graphs_need_a_cuda_device():
    graphed = [Provider("torch", gradient, graphed=True) for gradient in cases.GRADIENTS]
    chosen, skipped = providers.sort_out(graphed, CPU)
    assert chosen == []
    assert [(s.provider, s.reason) for s in skipped] == [
        ("torch + graph", "CUDA graphs need a CUDA device; this one is 'cpu'")
    ]


def test_on_cuda_every_backend_is_replayed_and_the_control_is_compiled(monkeypatch):
    monkeypatch.setattr(providers, "resolve_backend", lambda name: None)
    chosen, skipped = choose_providers(CUDA, gradients=["implicit"])
    assert not skipped
    assert [p.label for p in chosen] == [
        *("reference", "torch", "triton"),
        *("reference + graph", "torch + graph", "triton + graph"),
        *("reference + compile + graph", "torch + compile + graph"),
    ]
    assert all(p.graphed for p in choose_providers(CUDA, graphed=False)[0] if p.compiled)
