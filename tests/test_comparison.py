import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastslots import SLATE
from fastslots.cli.compare import TINY
from fastslots.comparison import Settings, compare, plot, plot_comparison
from fastslots.comparison import run as runs
from fastslots.comparison.arm import COLUMNS, Arm, Plan
from fastslots.comparison.memory import SceneMemory
from fastslots.comparison.record import POINT, ArmRecord, Comparison
from fastslots.comparison.report import markdown
from fastslots.comparison.warm_up import CAPTURED, capture, warm_up
from fastslots.data.scenes import Scenes

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SETTINGS = Settings(**TINY)


def memory(count=16, device=CPU):
    return SceneMemory.of(Scenes(count, image_size=16, mirror=False), device, math.inf)


def arm(name="implicit", settings=SETTINGS, device=CPU):
    return Arm(settings.configs()[name], settings, memory(device=device), device)


def plan(steps, total, device=CPU):
    return Plan.of(SETTINGS, 16, steps, total, device)


def test_leaves_everything_that_is_to_be_shown(tmp_path):
    comparison = compare(SETTINGS, CPU, tmp_path, minutes=5, steps=12, commit="abc")
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["steps"] == content["planned_steps"] == 12
    assert content["point"] == list(POINT)
    assert content["environment"]["commit"] == "abc"
    for name, config in SETTINGS.configs().items():
        found = content["arms"][name]
        assert [point[0] for point in found["curve"]] == list(range(1, 13))
        assert [chunk[:2] for chunk in found["chunks"]] == [[0, 10], [10, 12]]
        assert [row["step"] for row in found["heldout"]] == [0, 12]
        assert all(math.isfinite(row["fg_ari"]) for row in found["heldout"])
        assert found["evaluation"]["fg_ari"][0] <= 1
        assert SLATE.from_pretrained(tmp_path / name).config == config
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"| {name} | 12 |" in markdown(comparison)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert Comparison.load(tmp_path / "comparison.json").arms == comparison.arms


def test_both_models_start_as_the_same_function_of_the_same_images():
    first = {name: arm(name).run(plan(range(1), 9))[0] for name in ("implicit", "unrolled")}
    torch.testing.assert_close(first["implicit"][:2], first["unrolled"][:2], rtol=1e-5, atol=0)
    norm = COLUMNS.index("gradient_norm_slot_attn")
    assert first["unrolled"][norm] > 1.01 * first["implicit"][norm]


def test_the_warm_up_leaves_no_trace():
    expected = arm().run(plan(range(4), 9))
    warm = arm()
    cost = warm_up(warm, plan(range(2), 2))
    assert cost.ms > 0
    warm.reset()
    assert torch.equal(warm.run(plan(range(4), 9)), expected)


def test_chunks_of_steps_are_the_steps():
    whole, parts = arm(), arm()
    expected = whole.run(plan(range(6), 9))
    found = [parts.run(plan(steps, 9)) for steps in (range(2), range(2, 6))]
    assert torch.equal(torch.cat(found), expected)


def test_norms_are_of_the_gradients_before_clipping():
    clipped = replace(SETTINGS, clip=1e-3)
    row, same = (arm(settings=s).run(plan(range(1), 9))[0] for s in (SETTINGS, clipped))
    assert torch.equal(row, same)
    assert row[COLUMNS.index("gradient_linf")] > 1
    assert row[COLUMNS.index("gradient_linf")] <= row[2:5].square().sum().sqrt()


def test_clipping_bounds_the_gradients_that_adam_sees():
    for clip, bounded in ((0.5, True), (math.inf, False)):
        trained = arm(settings=replace(SETTINGS, clip=clip))
        trained.run(plan(range(1), 9))
        largest = max(p.grad.abs().max() for p in trained.parameters if p.grad is not None)
        assert bool(largest <= 0.5001) is bounded


def test_the_schedule_warms_up_and_ends_at_zero():
    factors, taus = zip(*(SETTINGS.schedule(step, 100) for step in range(101)), strict=True)
    assert factors[0] == pytest.approx(0.2)
    assert max(factors) == factors[5] == 1
    assert list(factors[5:]) == sorted(factors[5:], reverse=True)
    assert factors[100] == pytest.approx(0)
    assert (taus[0], taus[50], taus[100]) == pytest.approx((1.0, 0.1, 0.1))


@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_schedule_fits_few_steps(total):
    for step in range(total):
        factor, tau = SETTINGS.schedule(step, total)
        assert 0 <= factor <= 1
        assert 0.1 <= tau <= 1


def test_a_model_that_diverges_keeps_its_last_finite_weights(tmp_path, monkeypatch):
    run = Arm.run

    def explode(self, steps):
        history = run(self, steps)
        if self.model.config.gradient == "unrolled" and self.broken:
            history[3:] = torch.nan
            for parameter in self.parameters:
                parameter.data.fill_(torch.nan)
        return history

    monkeypatch.setattr(Arm, "run", explode)
    monkeypatch.setattr(Arm, "broken", False, raising=False)
    train = runs._Run.train
    monkeypatch.setattr(
        runs._Run, "train", lambda self: (setattr(Arm, "broken", True), train(self))
    )
    comparison = compare(SETTINGS, CPU, tmp_path, minutes=5, steps=12)
    implicit, unrolled = (comparison.arms[name] for name in ("implicit", "unrolled"))
    assert (implicit.diverged_after, unrolled.diverged_after) == (None, 3)
    assert (len(implicit.curve), len(unrolled.curve)) == (12, 3)
    assert "diverged after 3" in markdown(comparison)
    weights = SLATE.from_pretrained(tmp_path / "unrolled").state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    text = (tmp_path / "comparison.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_stops_in_time_and_shows_what_there_is(tmp_path):
    comparison = compare(SETTINGS, CPU, tmp_path, minutes=1e-3, steps=10_000)
    assert comparison.steps < 10_000
    assert (tmp_path / "comparison.png").exists()


def test_what_is_on_the_disk_before_the_end_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CHUNKS_PER_LOOK", 1)
    monkeypatch.setattr(runs._Run, "finish", lambda self: None)  # as after kill -9
    compare(replace(SETTINGS, clip=math.inf), CPU, tmp_path, minutes=5, steps=12)
    plot_comparison(tmp_path / "comparison.json", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()
    assert Comparison.load(tmp_path / "comparison.json").steps == 10
    for name in ("implicit", "unrolled"):
        SLATE.from_pretrained(tmp_path / name)


def test_every_title_stands_over_its_curve(tmp_path, monkeypatch):
    seen, right = [], plot.figure

    @contextmanager
    def spy(*arguments, **options):
        with right(*arguments, **options) as drawn:
            seen.append(drawn)
            yield drawn

    monkeypatch.setattr(plot, "figure", spy)
    path = next((Path(__file__).parents[1] / "benchmarks" / "results").rglob("comparison.json"))
    plot_comparison(path, tmp_path / "comparison.png")
    arm = Comparison.load(path).arms["implicit"]
    panels = {axes.get_title("left"): axes for axes in seen[0].axes}
    for column, _, title in plot.CURVES:
        drawn = panels[title].get_lines()[0].get_ydata()
        assert list(drawn) == [point[POINT.index(column)] for point in arm.curve]
    drawn = panels["Images per second"].get_lines()[0].get_ydata()
    assert list(drawn) == [chunk[3] for chunk in arm.chunks]


def test_points_are_means_and_largest_values():
    record = ArmRecord({}, 1, 1.0, None, None)
    history = torch.arange(18.0).view(3, 6)
    assert record.add(history, 4, 2.0, 8, 2)
    assert record.curve[0] == [6, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 8.0, 9.0, 10.0, 11.0]
    assert record.curve[1][:2] == [7, 12.0]
    assert record.chunks == [[4, 7, 2.0, 12.0]]


def test_memory_holds_the_scenes_as_they_are_rendered():
    scenes = Scenes(5, image_size=16)
    kept, expected = SceneMemory.of(scenes, CPU, math.inf), scenes.batch([4, 0])
    assert len(kept) == 5
    assert torch.equal(kept.batch([4, 0]).images, expected.images)
    assert torch.equal(kept.batch([4, 0]).masks, expected.masks)


def test_memory_takes_what_can_be_rendered_in_time(monkeypatch):
    monkeypatch.setattr("fastslots.comparison.memory.AT_A_TIME", 2)
    assert len(SceneMemory.of(Scenes(9, image_size=8), CPU, 0.0)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"lr_main": 0.0}, "lr_main must be above 0 and finite; got 0.0"),
        ({"clip": math.nan}, "clip must be above 0; got nan"),
        ({"image_size": 30}, "image_size must be a multiple of the patch size 4; got 30"),
    ],
)
def test_rejects(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"minutes": 0}, "minutes must be above 0 and finite; got 0"),
        ({"minutes": 1, "steps": 0}, "steps must be at least 1; got 0"),
    ],
)
def test_rejects_limits(tmp_path, limits, message):
    with pytest.raises(ValueError, match=message):
        compare(SETTINGS, CPU, tmp_path, **limits)


def test_a_file_that_is_no_comparison_is_an_error(tmp_path):
    (tmp_path / "other.json").write_text('{"schema": 1, "point": []}')
    with pytest.raises(ValueError, match=r"other\.json is no comparison of fastslots"):
        Comparison.load(tmp_path / "other.json")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["implicit", "unrolled"])
def test_a_captured_step_is_the_step(name):
    device = torch.device("cuda", 0)
    eager, captured = (arm(name, device=device) for _ in range(2))
    steps = plan(range(8), 9, device)
    warm_up(captured, plan(range(2), 2, device))
    assert capture({name: captured}) == CAPTURED
    captured.reset()
    # Sums of some gradients are added up in another order in every run.
    torch.testing.assert_close(captured.run(steps), eager.run(steps), rtol=0.02, atol=1e-3)
