import dataclasses
import math

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.readme import filled
from fastslots.benchmark import (
    BASELINE,
    IncorrectResultError,
    Results,
    Step,
    StepCase,
    StepProvider,
    StepResults,
    check_against_public,
    choose_step_providers,
    memory_use,
    plot_steps,
    run_step_benchmark,
    step_cases,
    step_markdown,
    step_tables,
)
from fastslots.benchmark.measure.compile_budget import CompileBudget
from fastslots.benchmark.step import check, runner
from fastslots.benchmark.step.check import check_losses
from fastslots.benchmark.step.plot import draw_panel
from fastslots.benchmark.step.step import CLIP, PartTimes
from fastslots.models.slate import SLATEConfig
from fastslots.models.slate.official import NAMES

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CONFIG = SLATEConfig(
    image_size=16,
    vocab_size=40,
    d_model=16,
    num_decoder_blocks=1,
    num_decoder_heads=2,
    num_slots=3,
    slot_size=16,
    mlp_hidden_size=16,
    num_iterations=2,
)
TINY = StepCase(CONFIG, 2)
UNROLLED, IMPLICIT = (StepProvider("fastslots", gradient) for gradient in ("unrolled", "implicit"))
EAGER = [BASELINE, UNROLLED, IMPLICIT]


@pytest.fixture(scope="module")
def results():
    cases = step_cases(2, [16, 24], [40], config=CONFIG)
    return run_step_benchmark(cases, EAGER, CPU, repeats=3, time_limit_s=0)


@pytest.fixture
def unchecked(monkeypatch):
    """For tests of what comes after the checks."""
    monkeypatch.setattr(runner, "check_against_public", lambda *_: None)


def test_rows_hold_times_bytes_and_sizes(results):
    assert [(row.case, row.provider, row.gradient) for row in results.rows] == [
        (f"{size}px-v40", provider.label, provider.gradient)
        for size in (16, 24)
        for provider in EAGER
    ]
    for row in results.rows:
        assert 0 < row.step_ms_p20 <= row.step_ms_p50 <= row.step_ms_p80
        assert row.images_per_s == pytest.approx(2000 / row.step_ms_p50)
        assert min(row.forward_ms, row.backward_ms, row.update_ms) > 0
        assert all(getattr(row, part) > 0 for part in PartTimes._fields)
        assert 0 < row.kept_bytes < row.peak_bytes
        assert (row.batch_size, row.num_slots, row.dropout, row.rounds) == (2, 3, 0.1, 3)


def test_compares_with_the_eager_public_form_of_the_same_case(results):
    for rows in results.cases().values():
        public = rows[0]
        assert (public.speedup, public.peak_ratio) == (1, 1)
        for row in rows[1:]:
            assert row.peak_ratio == row.peak_bytes / public.peak_bytes
            assert row.speedup > 0


def test_without_the_public_form_there_is_nothing_to_compare_with(unchecked):
    (row,) = run_step_benchmark([TINY], [IMPLICIT], CPU, repeats=3).rows
    assert (row.speedup, row.peak_ratio) == (None, None)


def test_all_providers_start_from_the_same_weights_and_images():
    public, *others = (Step(provider, TINY, CPU) for provider in EAGER)
    expected = public.model.state_dict()
    for step in others:
        assert torch.equal(step.image, public.image)
        for name, tensor in step.model.state_dict().items():
            assert torch.equal(tensor, expected[NAMES.get(name, name)]), name


@pytest.mark.parametrize("provider", EAGER, ids=lambda p: f"{p.label}-{p.gradient}")
def test_a_step_clips_and_changes_every_parameter_and_frees_the_gradients(provider):
    step = Step(provider, TINY, CPU)
    assert step.model.training
    before = [parameter.detach().clone() for parameter in step.parameters]
    largest = []

    def record(*_):
        largest.append(max(p.grad.abs().max().item() for p in step.parameters))

    step.optimizer.register_step_pre_hook(record)
    step.backward(step.forward())
    record()
    step.update()
    assert largest[0] > CLIP
    assert largest[1] == pytest.approx(CLIP, rel=1e-4)
    for old, new in zip(before, step.parameters, strict=True):
        assert not torch.equal(old, new)
        assert new.grad is None


def test_adam_is_fused_for_fastslots_and_has_the_rates_of_both_codes():
    public, fastslots = (Step(provider, TINY, CPU).optimizer for provider in (BASELINE, IMPLICIT))
    assert (public.defaults["fused"], fastslots.defaults["fused"]) == (None, True)
    for optimizer in (public, fastslots):
        assert [group["lr"] for group in optimizer.param_groups] == [3e-4, 1e-4]


def test_fastslots_draws_new_noise_at_every_step():
    step = Step(IMPLICIT, TINY, CPU)
    first, second = step.forward(), step.forward()
    assert first != second
    assert Step(IMPLICIT, TINY, CPU).forward() == first


@pytest.mark.parametrize("provider", [BASELINE, IMPLICIT], ids=lambda p: p.label)
def test_bf16_rounds_the_forward_and_keeps_parameters_in_float32(provider):
    exact, rounded = (
        Step(provider, dataclasses.replace(TINY, precision=precision), CPU)
        for precision in ("float32", "bf16")
    )
    seen = []
    rounded.model.slot_attn.mlp.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    losses = []
    for step in (exact, rounded):
        torch.manual_seed(0)
        losses.append(step.run().item())
    assert seen == [torch.bfloat16]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.2)
    assert {p.dtype for p in rounded.parameters} == {torch.float32}


@pytest.mark.parametrize("provider", [BASELINE, IMPLICIT], ids=lambda p: p.label)
def test_parts_add_up_to_the_forward_and_leave_no_hooks(provider):
    step = Step(provider, TINY, CPU)
    step.run()
    assert all(part > 0 for part in step.part_times())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in step.model.modules())


@pytest.mark.parametrize("provider", EAGER, ids=lambda p: f"{p.label}-{p.gradient}")
def test_a_step_needs_the_same_memory_whatever_was_measured_before(provider):
    step = Step(provider, TINY, CPU)
    step.run()
    first = memory_use(step.forward, step.backward_and_free, CPU)
    with_gradients_left = memory_use(step.forward, step.backward, CPU)
    step.update()
    step.run()
    assert first == with_gradients_left
    assert memory_use(step.forward, step.backward_and_free, CPU) == first
    assert first.peak_bytes > sum(4 * parameter.numel() for parameter in step.parameters)


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_fastslots_equals_the_public_form(gradient):
    check_against_public(gradient, CPU)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("out.weight", "cross_entropy"),
        ("dvae.decoder.11.weight", "mse"),
        ("gradient", "gradient of tf_dec"),
        ("frozen", "slot_proj.weight has no gradient"),
    ],
)
def test_wrong_results_stop_the_benchmark_before_timing(monkeypatch, wrong, message):
    right = check.load_public

    def load(public, config, gradient):
        model = right(public, config, gradient)
        if wrong == "gradient":
            model.tf_dec.layer_norm.weight.register_hook(lambda grad: grad * 1.001)
        elif wrong == "frozen":
            model.slot_proj.weight.requires_grad_(False)
        else:
            with torch.no_grad():
                model.get_parameter(wrong).mul_(1 + 1e-6)
        return model

    monkeypatch.setattr(check, "load_public", load)
    monkeypatch.setattr(runner, "Step", lambda *_: pytest.fail("measured wrong results"))
    with pytest.raises(IncorrectResultError, match=message):
        run_step_benchmark([TINY], [UNROLLED], CPU)


@pytest.mark.parametrize("loss", [1.1, math.nan])
def test_a_first_loss_unlike_the_others_stops_the_benchmark(loss):
    case = StepCase(SLATEConfig(), 50)  # 12,800 tokens
    check_losses({"public": 1.0, "fastslots": 1.01}, case)
    with pytest.raises(IncorrectResultError, match=r"first loss of fastslots is .*that of public"):
        check_losses({"public": 1.0, "fastslots": loss}, case)


def test_the_first_losses_of_all_providers_are_compared(monkeypatch, unchecked):
    right = Step.run
    monkeypatch.setattr(
        Step, "run", lambda step: right(step) * (math.nan if step.provider == IMPLICIT else 1)
    )
    with pytest.raises(IncorrectResultError, match="first loss of fastslots, implicit is nan"):
        run_step_benchmark([TINY], EAGER, CPU, repeats=3)


@pytest.fixture
def eager_compiler(monkeypatch):
    """Traces, but generates no code: that takes a minute."""
    compile_, options_seen = torch.compile, []

    def compile_without_code(model, mode, **options):
        options_seen.append({"mode": mode, **options})
        return compile_(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_without_code)
    return options_seen


def test_compiled_providers_are_one_graph_each_and_have_no_parts(eager_compiler, unchecked):
    case = StepCase(dataclasses.replace(CONFIG, num_iterations=1), 2)
    providers = [dataclasses.replace(provider, compiled=True) for provider in (BASELINE, IMPLICIT)]
    measured = run_step_benchmark([case], [BASELINE, *providers], CPU, repeats=3)
    assert not measured.skipped
    assert [row.provider for row in measured.rows] == [
        "public",
        "public + compile",
        "fastslots + compile",
    ]
    for row in measured.rows[1:]:
        assert row.compiled
        assert all(getattr(row, part) is None for part in PartTimes._fields)
        assert row.peak_bytes > 0
        assert row.speedup > 0
    assert eager_compiler == [{"mode": "default", "fullgraph": True, "dynamic": False}] * 2


def test_graphs_of_one_case_do_not_count_against_the_next(eager_compiler):
    cases = step_cases(2, [8, 12, 16], [40], config=dataclasses.replace(CONFIG, num_iterations=1))
    compiled = dataclasses.replace(BASELINE, compiled=True)
    with torch._dynamo.config.patch(recompile_limit=1):  # the default is 8: this is faster
        measured = run_step_benchmark(cases, [compiled], CPU, repeats=3)
    assert not measured.skipped
    assert [row.image_size for row in measured.rows] == [8, 12, 16]


def test_what_cannot_be_compiled_is_left_out_with_its_reason(monkeypatch, unchecked):
    def fail(*_, **__):
        raise RuntimeError("no working C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
    compiled = dataclasses.replace(BASELINE, compiled=True)
    measured = run_step_benchmark([TINY], [BASELINE, compiled], CPU, repeats=3)
    assert [row.provider for row in measured.rows] == ["public"]
    (left_out,) = measured.skipped
    assert (left_out.provider, left_out.case) == ("public + compile", "16px-v40")
    assert left_out.reason == "torch.compile failed: no working C++ compiler"


def test_nothing_is_compiled_beyond_the_limit():
    compiled = dataclasses.replace(BASELINE, compiled=True)
    measured = run_step_benchmark([TINY], [compiled], CPU, compile_limit_s=0)
    assert not measured.rows
    assert [entry.reason for entry in measured.skipped] == [
        "torch.compile would take longer than the limit, 0 s"
    ]


def test_the_limit_of_compiling_is_judged_by_what_came_before():
    budget = CompileBudget(25)
    for seconds in (60, 10):  # the first also loads the compiler
        assert budget.allows()
        budget.spend(seconds)
    assert budget.allows()
    budget.spend(10)
    assert not budget.allows()
    assert CompileBudget(25).allows(1000)


@pytest.mark.parametrize("method", ["run", "backward_and_free"])
def test_what_does_not_fit_the_gpu_is_left_out_with_its_reason(monkeypatch, unchecked, method):
    right = getattr(Step, method)

    def run_small(step, *arguments):
        if step.provider == BASELINE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return right(step, *arguments)

    monkeypatch.setattr(Step, method, run_small)
    measured = run_step_benchmark([TINY], [BASELINE, IMPLICIT], CPU, repeats=3)
    assert [row.provider for row in measured.rows] == ["fastslots"]
    assert [(entry.provider, entry.reason) for entry in measured.skipped] == [
        ("public", "out of memory: CUDA out of memory. Tried to allocate 2 GiB")
    ]


def test_errors_of_eager_providers_are_not_hidden(monkeypatch, unchecked):
    def fail(step):
        raise RuntimeError("broken")

    monkeypatch.setattr(Step, "run", fail)
    with pytest.raises(RuntimeError, match="broken"):
        run_step_benchmark([TINY], [BASELINE], CPU)


def test_chooses_eager_providers_first_and_the_public_form_unrolled_alone():
    labels = [(p.label, p.gradient) for p in choose_step_providers(gradients=["implicit"])]
    assert labels == [
        ("public", "unrolled"),
        ("fastslots", "implicit"),
        ("public + compile", "unrolled"),
        ("fastslots + compile", "implicit"),
    ]
    assert choose_step_providers(compiled=False) == EAGER


def test_cases_are_every_image_size_with_every_vocabulary():
    assert [case.name for case in step_cases(50)] == [
        f"{size}px-v{vocab}" for size in (64, 96, 128) for vocab in (1024, 4096)
    ]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: StepCase(CONFIG, 0), "batch_size must be at least 1; got 0"),
        (lambda: StepCase(CONFIG, 1, "fp8"), "precision must be one of .*; got 'fp8'"),
        (lambda: step_cases(1, [30]), "image_size must be a multiple of the patch size 4; got 30"),
        (lambda: choose_step_providers(["jax"]), r"provider must be one or more of .*\['jax'\]"),
        (lambda: choose_step_providers([]), r"provider must be one or more of .*; got \[\]"),
        (lambda: choose_step_providers(None, ["neumann"]), r"gradient must be .*\['neumann'\]"),
        (
            lambda: run_step_benchmark([TINY], EAGER, CPU, repeats=2),
            "repeats must be at least 3; got 2",
        ),
        (
            lambda: run_step_benchmark([TINY], EAGER, CPU, time_limit_s=-1),
            "time_limit_s must be at least 0; got -1",
        ),
    ],
)
def test_rejects_what_breaks_a_rule(function, message):
    with pytest.raises(ValueError, match=message):
        function()


def test_results_survive_their_file_and_are_not_those_of_slot_attention(results, tmp_path):
    path = tmp_path / "steps.json"
    results.save(path)
    assert StepResults.load(path) == results
    with pytest.raises(ValueError, match=r"steps\.json is no results file of fastslots"):
        Results.load(path)


def test_tables_show_every_row_and_what_was_left_out(results):
    skipped = [runner.Skipped("public + compile", "too slow", "16px-v40", "unrolled")]
    text = step_markdown(dataclasses.replace(results, skipped=skipped))
    assert "**16 pixels, V 40, B 2: 1 blocks, d 16, K 3, T 2, float32**" in text
    assert text.count("\n| fastslots | implicit |") == 4  # two cases: steps, and parts
    assert text.count("\n| public | unrolled |") == 4
    assert "- 16px-v40, public + compile, unrolled not measured: too slow" in text
    assert torch.__version__ in text
    assert [table.row_count for table in step_tables(results)] == [3] * 4


def test_tables_show_dashes_for_what_is_not_known(results):
    unknown = dataclasses.replace(
        results.rows[0],
        compiled=True,
        kept_bytes=None,
        peak_bytes=None,
        speedup=None,
        peak_ratio=None,
    )
    text = step_markdown(dataclasses.replace(results, rows=[unknown]))
    assert "| - | - | - | - |\n" in text
    assert "eager forward" not in text


def test_plots_rows_with_and_without_memory(results, tmp_path):
    rows = [*results.rows[:2], dataclasses.replace(results.rows[2], peak_bytes=None)]
    plot_steps(dataclasses.replace(results, rows=rows), tmp_path / "plots" / "steps.png")
    content = (tmp_path / "plots" / "steps.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


def test_plot_says_where_nothing_was_counted(results):
    axes = Figure().subplots()
    rows = [results.rows[0], dataclasses.replace(results.rows[1], peak_bytes=None)]
    case = dataclasses.replace(results, rows=rows).cases()
    draw_panel(axes, case, "peak_bytes", 1.0)
    assert [text.get_text() for text in axes.texts].count(" not counted") == 1
    assert axes.get_xlim() == (-0.5, len(case) - 0.5)


def test_refuses_to_plot_nothing(results, tmp_path):
    with pytest.raises(ValueError, match="results must hold at least one row; got none"):
        plot_steps(dataclasses.replace(results, rows=[]), tmp_path / "steps.png")


def test_fills_the_blocks_of_the_readme(results, tmp_path):
    results.save(tmp_path / "cpu.json")
    readme = "# Title\n<!-- slate-steps:cpu -->\nold\n<!-- /slate-steps -->\nend\n"
    once = filled(readme, tmp_path, draw=True)
    start = "# Title\n<!-- slate-steps:cpu -->\n\n![Images per second"
    assert once.startswith(start)
    assert "](benchmarks/results/cpu.png)\n" in once
    assert once.endswith("\n<!-- /slate-steps -->\nend\n")
    assert "old" not in once
    assert once.count("\n| fastslots | implicit |") == 4
    assert (tmp_path / "cpu.png").exists()
    assert filled(once, tmp_path, draw=False) == once


@pytest.mark.parametrize("end", ["", "<!-- /benchmark -->"])
def test_refuses_a_readme_with_a_block_left_open(tmp_path, end):
    with pytest.raises(ValueError, match=r"README must have a <!-- /\S+ --> for every"):
        filled(f"<!-- slate-steps:cpu -->\n{end}\n", tmp_path, draw=False)
