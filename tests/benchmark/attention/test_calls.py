"""Calls alone and as CUDA graphs, which a stand-in captures by running."""

import contextlib
import types

import pytest
import torch

from fastslots.benchmark import (
    Call,
    Problem,
    Provider,
    run_benchmark,
)
from fastslots.benchmark.attention import calls
from fastslots.benchmark.attention.check import BY_ORACLE
from tests.benchmark.attention.cases import CPU, NO_GRAD, TINY

pytestmark = pytest.mark.slow


class FakeGraph:
    """Notes its replays."""

    log: list[int] = []  # noqa: RUF012 - of all graphs

    def replay(self):
        self.log.append(id(self))


@pytest.fixture
def fake_cuda(monkeypatch):
    """Captures by running: all of torch.cuda that graphs use."""
    FakeGraph.log.clear()
    stream = types.SimpleNamespace(wait_stream=lambda other: None)

    @contextlib.contextmanager
    def graph(cuda_graph, pool):
        yield

    for name, value in {
        "Stream": lambda *_: stream,
        "current_stream": lambda *_: stream,
        "stream": contextlib.nullcontext,
        "CUDAGraph": FakeGraph,
        "graph": graph,
        "device": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


def test_a_forward_alone_makes_no_graph_and_no_attention():
    call = Call(NO_GRAD[1], Problem.make(TINY, CPU), 3)
    (slots, attn, _), grads = call.run()
    assert (attn, grads) == (None, ())
    assert not slots.requires_grad


@pytest.mark.parametrize("gradient", ["implicit", "no-grad"])
def test_a_captured_call_replays_its_forward_and_then_its_backward(fake_cuda, gradient):
    call = Call(Provider("torch", gradient, graphed=True), Problem.make(TINY, CPU), 2)
    expected, expected_grads = call.run()
    call.capture(None)
    outputs, grads = call.run()
    assert len(set(FakeGraph.log)) == len(FakeGraph.log) == (2 if gradient == "implicit" else 1)
    torch.testing.assert_close(outputs[0], expected[0], rtol=0, atol=0)
    assert not outputs[0].requires_grad
    assert len(grads) == len(expected_grads)
    call.graphs.forget()
    assert call.run() == ((), ())


def test_rows_of_graphs_are_checked_and_have_the_memory_of_before_their_capture(fake_cuda):
    graphed = Provider("torch", "implicit", graphed=True)
    results = run_benchmark([TINY], [graphed, Provider("torch", "implicit")], CPU, repeats=3)
    by_provider = {(row.provider, row.iterations): row for row in results.rows}
    assert by_provider["torch + graph", 2].graphed
    assert by_provider["torch + graph", 2].peak_bytes == by_provider["torch", 2].peak_bytes > 0
    assert by_provider["torch + graph", 1].check == BY_ORACLE


def test_what_cannot_be_captured_is_left_out_with_its_reason(fake_cuda, monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    monkeypatch.setattr(calls, "Graphs", fail)
    graphed = Provider("torch", "implicit", graphed=True)
    results = run_benchmark([TINY], [graphed, Provider("torch", "implicit")], CPU, repeats=3)
    assert {row.provider for row in results.rows} == {"torch"}
    assert [(s.provider, s.iterations, s.reason) for s in results.skipped] == [
        (
            "torch + graph",
            count,
            "no CUDA graph could be captured: operation not permitted when stream is capturing",
        )
        for count in (1, 2)
    ]
