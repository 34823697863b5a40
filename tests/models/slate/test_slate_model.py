"""SLATE: the training forward, encoding, cross-entropy, and what they refuse."""

import math

import pytest
import torch

from fastslots.models.slate import SLATE
from fastslots.models.slate.reference import PublicSLATE
from fastslots.noise import sample_keys
from tests.models.slate.keyed_noise import with_keyed_noise
from tests.models.slate.small_models import (
    images,
    initial_slots,
    keywords,
    official_pair,
    relative_error,
    small_config,
    small_model,
)

HEADS = pytest.mark.parametrize("heads", [1, 2, 4])


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@HEADS
def test_training_forward_and_gradients_equal_the_public_form_with_the_same_noise(
    heads, dropout, hard, monkeypatch
):
    public, model = official_pair(num_slot_heads=heads, dropout=dropout)
    image, keys = images(dtype=torch.float64), sample_keys(range(5), 0)
    with_keyed_noise(public, keys, monkeypatch)
    expected = public(image, 0.7, hard)
    actual = model(image, 0.7, hard, keys)
    for name in ("recon", "cross_entropy", "mse", "attn"):
        assert relative_error(getattr(actual, name), getattr(expected, name)) <= 1e-9, name
    (expected.cross_entropy + expected.mse).backward()
    (actual.cross_entropy + actual.mse).backward()
    expected_grads = {n: p.grad for n, p in public.named_parameters() if p.requires_grad}
    largest = max(gradient.abs().max() for gradient in expected_grads.values())
    for name, parameter in model.named_parameters():
        error = (parameter.grad - expected_grads[name.replace("slot_init.", "")]).abs().max()
        assert error <= 1e-9 * largest, name


def test_a_seed_gives_the_initial_parameters_of_the_public_form():
    config = small_config(num_slot_heads=2)
    torch.manual_seed(0)
    expected = PublicSLATE(config).state_dict()
    torch.manual_seed(0)
    actual = SLATE(config).state_dict()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name.replace("slot_init.", "")]), name


def test_no_gradient_couples_the_dvae_with_the_rest():
    model = small_model()
    output = model(images())
    for loss, owns in ((output.mse, True), (output.cross_entropy, False)):
        model.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            touched = parameter.grad is not None and parameter.grad.abs().max() > 0
            if touched:
                assert name.startswith("dvae.") is owns, name


def test_losses_are_summed_per_image_and_averaged_over_the_batch():
    model, image = small_model().eval(), images()
    output = model(image, tau=0.5)
    per_image = [model(image[i : i + 1], tau=0.5).mse for i in range(len(image))]
    torch.testing.assert_close(output.mse, torch.stack(per_image).mean())
    slots = torch.zeros_like(output.slots)
    with torch.no_grad():
        model.out.weight.zero_()
    uniform = model.token_cross_entropy(output.ids, slots)
    assert math.isclose(uniform.item(), 16 * math.log(40), rel_tol=1e-5)


def test_reconstruction_is_clamped_and_its_error_is_that_of_the_unclamped_image():
    model, image = small_model().eval(), images()
    with torch.no_grad():
        model.dvae.decoder[-1].bias += torch.tensor([2.0, -2.0, 0.0])
    output = model(image)
    unclamped = model.dvae.decoder(model.dvae.encoder(image).softmax(1))
    assert output.recon.min() == 0
    assert output.recon.max() == 1
    torch.testing.assert_close(output.mse, (image - unclamped).square().sum() / len(image))


def test_eval_mode_repeats_itself_given_the_draw_of_the_slots():
    model, image = small_model().eval(), images()
    torch.manual_seed(0)
    first = model(image)
    torch.manual_seed(0)
    second = model(image)
    for name, tensor in first._asdict().items():
        assert torch.equal(tensor, getattr(second, name)), name
    assert torch.equal(first.ids, model.tokenize(image))
    assert not torch.equal(first.slots, model(image).slots)


def test_training_mode_draws_tokens_and_drops_out():
    model, image = small_model(), images()
    assert not torch.equal(model(image).ids, model(image).ids)
    ids, guess = model.tokenize(image), initial_slots(dtype=torch.float32)
    assert not torch.equal(model.encode(ids, guess)[0], model.encode(ids, guess)[0])


def test_encode_takes_an_initial_guess_with_any_number_of_slots():
    model, ids = small_model().eval(), small_model().tokenize(images())
    slots, attn = model.encode(ids, initial_slots(num_slots=5, dtype=torch.float32))
    assert slots.shape == (5, 5, 16)
    assert attn.shape == (5, 16, 5)
    torch.testing.assert_close(attn.sum(-1), torch.ones(5, 16))
    drawn, _ = model.encode(ids)
    assert drawn.shape == (5, 3, 16)


def test_more_iterations_before_the_tracked_step_are_what_neumann_counts():
    implicit = small_model(gradient="neumann", num_iterations=2).eval()
    unrolled = small_model(gradient="unrolled", num_iterations=3).eval()
    ids, guess = implicit.tokenize(images()), initial_slots(dtype=torch.float32)
    torch.testing.assert_close(implicit.encode(ids, guess), unrolled.encode(ids, guess))


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"gradient": "unrolled"}, True),
        ({"gradient": "neumann"}, False),
        ({"gradient": "neumann", "init_gradient": "straight-through"}, True),
        ({"gradient": "unrolled", "slot_init": "learned"}, True),
    ],
)
def test_every_parameter_that_asks_for_a_gradient_gets_one(settings, learns):
    model = small_model(**settings)
    output = model(images())
    (output.mse + output.cross_entropy).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (learns or "slot_init" not in name), name
        assert (parameter.grad is not None) is parameter.requires_grad, name


def test_token_cross_entropy_is_the_forward_s():
    model, image = small_model().eval(), images()
    output = model(image)
    torch.testing.assert_close(
        model.token_cross_entropy(output.ids, output.slots), output.cross_entropy
    )


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "hard"), [("neumann", False), ("unrolled", True)])
def test_training_step_compiles_into_one_graph_with_the_same_gradients(gradient, hard):
    model = small_model(gradient=gradient, num_decoder_blocks=2, num_iterations=2, dropout=0.3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    learned = [p for p in model.parameters() if p.requires_grad]
    keys, tau = sample_keys(range(5), 0), torch.tensor(0.8)
    losses, gradients = [], []
    for call in (model, compiled):
        output = call(images(), tau, hard, keys)
        losses.append(torch.stack([output.mse, output.cross_entropy]))
        gradients.append(torch.autograd.grad(losses[-1].sum(), learned))
    torch.testing.assert_close(losses[1], losses[0])
    largest = max(grad.abs().max() for grad in gradients[0])
    for actual, expected in zip(*gradients, strict=True):
        assert (actual - expected).abs().max() <= 1e-6 * largest


def test_bfloat16_autocast_stays_near_float32():
    model, image = small_model().eval(), images()
    slots = initial_slots(dtype=torch.float32)
    expected = model.token_cross_entropy(model.tokenize(image), slots)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(image)
        actual = model.token_cross_entropy(model.tokenize(image), slots)
    assert output.cross_entropy.dtype == output.mse.dtype == torch.float32
    assert relative_error(actual, expected) < 0.05


def test_twenty_steps_on_one_batch_lower_both_losses():
    torch.manual_seed(0)
    model = SLATE(small_config(gradient="neumann", num_decoder_blocks=1, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    image = torch.zeros(4, 3, 16, 16)
    image[:, :, :8, :8] = torch.linspace(0.2, 1, 4).view(4, 1, 1, 1)
    losses = []
    for _ in range(20):
        output = model(image, tau=0.5)
        optimizer.zero_grad()
        (output.mse + output.cross_entropy).backward()
        optimizer.step()
        losses.append((output.mse.item(), output.cross_entropy.item()))
    assert losses[-1][0] < 0.2 * losses[0][0]
    assert losses[-1][1] < 0.9 * losses[0][1]


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(2, 3, 20, 16), ValueError, r"shape \(B, 3, 16, 16\); got \(2, 3, 20, 16\)"),
        (torch.zeros(2, 1, 16, 16), ValueError, r"got \(2, 1, 16, 16\)"),
        (torch.zeros(3, 16, 16), ValueError, r"got \(3, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TypeError, "float32 .*; got torch.uint8"),
        (torch.zeros(2, 3, 16, 16).double(), TypeError, "float32 .*; got torch.float64"),
    ],
    ids=["size", "channels", "rank", "bytes", "precision"],
)
def test_refuses_a_wrong_image(image, error, message):
    model = small_model()
    for call in (model, model.tokenize, model.reconstruct):
        with pytest.raises(error, match=f"image must .*{message}"):
            call(image)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.full((2, 16), 40), ValueError, r"lie in \[0, vocab_size=40\); got 40 to 40"),
        (torch.arange(-1, 15).expand(2, 16), ValueError, r"got -1 to 14"),
        (torch.zeros(2, 15).long(), ValueError, r"shape \(B, 16\); got \(2, 15\)"),
        (torch.zeros(2, 4, 4).long(), ValueError, r"got \(2, 4, 4\)"),
        (torch.zeros(2, 16), TypeError, "torch.int64; got torch.float32"),
    ],
    ids=["too-high", "negative", "length", "rank", "dtype"],
)
def test_refuses_wrong_ids(ids, error, message):
    model = small_model()
    slots = initial_slots(2, dtype=torch.float32)
    for call in (model.encode, model.token_cross_entropy):
        with pytest.raises(error, match=f"ids must .*{message}"):
            call(ids, slots)


@pytest.mark.parametrize(
    ("slots", "error", "message"),
    [
        (torch.zeros(2, 3, 17), ValueError, r"K, 16\) with K at least 1; got \(2, 3, 17\)"),
        (torch.zeros(2, 0, 16), ValueError, r"got \(2, 0, 16\)"),
        (torch.zeros(3, 16), ValueError, r"got \(3, 16\)"),
        (torch.zeros(2, 3, 16).double(), TypeError, "torch.float32 .*; got torch.float64"),
    ],
    ids=["width", "none", "rank", "dtype"],
)
def test_refuses_wrong_slots(slots, error, message):
    model, image = small_model(), images(2)
    ids = model.tokenize(image)
    calls = (
        lambda: model.encode(ids, slots),
        lambda: model.token_cross_entropy(ids, slots),
        lambda: model.generate(slots),
        lambda: model.reconstruct(image, slots),
    )
    for call in calls:
        with pytest.raises(error, match=f"slots must .*{message}"):
            call()


def test_refuses_the_losses_of_an_empty_batch():
    model = small_model()
    with pytest.raises(ValueError, match=r"image must hold at least one image, .*; got 0"):
        model(images(0))
    ids = model.tokenize(images(0))  # which works, as encoding and reconstructing do
    slots, _ = model.encode(ids)
    assert model.reconstruct(images(0)).shape == (0, 3, 16, 16)
    with pytest.raises(ValueError, match=r"ids must hold at least one image, .*; got 0"):
        model.token_cross_entropy(ids, slots)


def test_refuses_slots_of_another_batch():
    model = small_model()
    with pytest.raises(ValueError, match=r"slots must have shape \(2, K, 16\)"):
        model.encode(model.tokenize(images(2)), initial_slots(3, dtype=torch.float32))


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, 1e-50])
def test_refuses_a_temperature_not_above_zero(tau):
    with pytest.raises(ValueError, match=f"tau must be at least 1e-30 and finite; got {tau}"):
        small_model()(images(), tau)


def test_dropout_acts_on_the_embeddings_in_training_mode_alone():
    model = small_model(dropout=0.5)
    ids = model.tokenize(images())
    slots = model.slot_attn.slot_init(len(ids))
    for training in (True, False):
        model.train(training)
        encoded = [model.encode(ids, slots)[0] for _ in range(2)]
        assert torch.equal(*encoded) is not training
        losses = [model.token_cross_entropy(ids, slots) for _ in range(2)]
        assert torch.equal(*losses) is not training


def test_loaded_models_are_in_eval_mode(tmp_path):
    public, _ = official_pair()
    config = small_config()
    official = SLATE.from_official(public.state_dict(), **keywords(config))
    official.save_pretrained(tmp_path)
    assert not official.training
    assert not SLATE.from_pretrained(tmp_path).training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(None), "image must be a tensor; got NoneType"),
        (lambda model: model.encode([[1]]), "ids must be a tensor; got list"),
        (lambda model: model.generate(3), "slots must be a tensor; got int"),
    ],
    ids=["image", "ids", "slots"],
)
def test_what_is_no_tensor_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call(small_model())


def test_an_image_with_its_key_is_the_same_in_any_batch():
    model, image = small_model(dropout=0.3).double(), images(dtype=torch.float64)
    keys = sample_keys(range(5), 0)
    together = model(image, 0.7, keys=keys)
    for part in (slice(0, 2), slice(2, 5)):
        alone = model(image[part], 0.7, keys=keys[part])
        assert torch.equal(alone.ids, together.ids[part])
        for name in ("recon", "attn", "slots"):
            actual, expected = getattr(alone, name), getattr(together, name)[part]
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        together.cross_entropy,
        sum(model(image[i : i + 1], 0.7, keys=keys[i : i + 1]).cross_entropy for i in range(5)) / 5,
    )


def test_keys_decide_all_noise():
    model, image = small_model(dropout=0.3), images()
    first, same, other = (model(image, keys=sample_keys(range(5), seed)) for seed in (0, 0, 1))
    assert torch.equal(first.recon, same.recon)
    assert torch.equal(first.cross_entropy, same.cross_entropy)
    assert not torch.equal(first.recon, other.recon)
    assert not torch.equal(first.ids, other.ids)
    model.eval()
    ids = model.tokenize(image)
    keys = sample_keys(range(5), 0)
    assert torch.equal(model(image, keys=keys).slots, model.encode(ids, keys=keys)[0])


def test_under_autocast_losses_are_float32_and_close():
    model, image, keys = small_model(dropout=0.3), images(), sample_keys(range(5), 0)
    exact = model(image, keys=keys)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(image, keys=keys)
    (output.cross_entropy + output.mse).backward()
    for name in ("cross_entropy", "mse"):
        assert getattr(output, name).dtype == torch.float32
        assert relative_error(getattr(output, name), getattr(exact, name)) < 0.05
    learned = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in learned)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (torch.zeros(5, 2), TypeError, "keys must be torch.int32; got torch.float32"),
        (torch.zeros(4, 2, dtype=torch.int32), ValueError, r"keys must have shape \(5, 2\)"),
        ([1, 2], TypeError, "keys must be a tensor; got list"),
    ],
)
def test_wrong_keys_are_named(keys, error, message):
    with pytest.raises(error, match=message):
        small_model()(images(), keys=keys)


def test_a_model_in_bfloat16_runs_in_either_mode():
    model, image = small_model(dropout=0.3).to(torch.bfloat16), images(dtype=torch.bfloat16)
    keys = sample_keys(range(5), 0)
    for mode in (model.train(), model.eval()):
        output = mode(image, keys=keys)
        (output.cross_entropy + output.mse).backward()
        assert output.cross_entropy.isfinite()
    assert model.reconstruct(image, keys=keys).dtype == torch.bfloat16


def test_teacher_forcing_in_eval_mode_draws_nothing():
    model, slots = small_model().eval(), initial_slots(dtype=torch.float32)
    before = torch.get_rng_state()
    model.token_cross_entropy(torch.zeros(5, 16, dtype=torch.int64), slots)
    assert torch.equal(torch.get_rng_state(), before)
