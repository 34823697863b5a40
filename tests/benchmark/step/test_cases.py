import pytest

from fastslots.benchmark import (
    StepCase,
    choose_step_providers,
    run_step_benchmark,
    step_cases,
)
from tests.benchmark.step.cases import CONFIG, CPU, EAGER, TINY

pytestmark = pytest.mark.slow


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
