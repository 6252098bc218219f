import pytest
import torch
import torch.nn.functional as F

from fastdiss_fairseq.compat import _attention_by_hand, scaled_dot_product_attention
from fastdiss_fairseq.modules import rounding
from fastdiss_fairseq.modules.rounding import Vocabulary, largest, nearest_token, read, rounding_loss


def inputs(positions=11, vocabulary=23, dim=6, dtype=torch.float64):
    torch.manual_seed(0)
    states = torch.randn(positions, dim, dtype=dtype, requires_grad=True)
    table = torch.randn(vocabulary, dim, dtype=dtype, requires_grad=True)
    return states, table, torch.randint(vocabulary, (positions,)), torch.rand(positions, dtype=dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 4, 256])
def test_rounding_loss_and_its_gradient_are_those_of_torch(smoothing, at_once, monkeypatch):
    monkeypatch.setitem(rounding.AT_ONCE, "cpu", at_once)
    states, table, target, weight = inputs()
    expected = F.cross_entropy(states @ table.T, target, reduction="none", label_smoothing=smoothing)
    gradients = torch.autograd.grad((expected * weight).sum(), (states, table))
    found = rounding_loss(states, table, target, smoothing)
    assert torch.allclose(found.loss.double(), expected, atol=1e-5)
    assert torch.equal(found.correct, (states @ table.T).argmax(-1) == target)
    for one, other in zip(torch.autograd.grad((found.loss * weight).sum(), (states, table)), gradients):
        assert torch.allclose(one, other, atol=1e-5)


def test_autocast_around_the_forward_pass_alone_changes_no_gradient():
    """As fairseq's --amp has it: the backward pass computes the logits anew, outside."""
    torch.manual_seed(0)
    states, table = 30 * torch.eye(8)[:5], 3 * torch.eye(8)
    states, table = states.requires_grad_(), table.requires_grad_()
    target = torch.arange(5)
    exact = torch.autograd.grad(rounding_loss(states, table, target).loss.sum(), (states, table))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = rounding_loss(states * 1.003, table, target).loss.sum()
    plain = torch.autograd.grad(rounding_loss(states * 1.003, table, target).loss.sum(), (states, table))
    found = torch.autograd.grad(loss, (states, table))
    assert exact[0].abs().max() < 1e-6, "tokens that are already right"
    assert all(torch.equal(one, other) for one, other in zip(found, plain))


def test_rounding_keeps_no_logits_for_the_backward_pass():
    states, table, target, _ = inputs()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        rounding_loss(states, table, target)
    assert sizes and max(sizes) <= max(states.numel(), table.numel())


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.torch_2)])
def test_rounding_in_half_precision_is_close(dtype):
    states, table, target, weight = inputs(dtype=torch.float32)
    exact = rounding_loss(states, table, target)
    rounded = rounding_loss(states.to(dtype), table.to(dtype), target)
    assert rounded.loss.dtype == torch.float32
    assert torch.allclose(exact.loss, rounded.loss, atol=0.1)
    one, other = (torch.autograd.grad((found.loss * weight).sum(), (states, table)) for found in (exact, rounded))
    for a, b in zip(one, other):
        assert b.dtype == torch.float32 and torch.allclose(a, b, atol=0.05)


def test_nearest_token():
    states, table, _, _ = inputs(positions=600)
    assert torch.equal(nearest_token(states, table), (states @ table.T).argmax(-1))


@pytest.mark.parametrize("size", [1, 20, 127, 128, 129, 300, 8003])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_largest_is_max_with_the_first_among_equals(rows, size):
    logits = torch.randint(-3, 3, (rows, size)).float()  # many are equal
    logits[: rows // 4] = torch.randn(rows // 4, size)
    if rows > 40:
        logits[30] = -float("inf")
        logits[31, size // 2] = float("nan")
        logits[32:34] = torch.arange(size).float()  # the last one
    for found, expected in zip(largest(logits), logits.max(-1)):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_no_real_position_at_all():
    states, table, target, _ = inputs(positions=0)
    assert nearest_token(states, table).shape == (0,)
    assert rounding_loss(states, table, target).loss.shape == (0,)


def test_attention_in_bfloat16_on_a_cpu_is_computed_in_single_precision():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8).bfloat16()
    mask = torch.zeros(2, 1, 5, 5).masked_fill(torch.rand(2, 1, 5, 5) < 0.2, -float("inf"))
    expected = _attention_by_hand(query.float(), key.float(), value.float(), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("at_once", [2, 256])
def test_read_excludes_tokens_but_not_from_the_mean(at_once, monkeypatch):
    monkeypatch.setitem(rounding.AT_ONCE, "cpu", at_once)
    states, table, _, _ = inputs(dtype=torch.float32)
    logits = (states @ table.T).detach()
    found = read(states, Vocabulary.of(table, [0, 4]), mean=True)
    assert torch.allclose(found.mean, logits.softmax(-1) @ table, atol=1e-5)
    allowed = [v for v in range(len(table)) if v not in (0, 4)]
    log_probs, place = logits[:, allowed].log_softmax(-1).max(-1)
    assert torch.equal(found.tokens, torch.tensor(allowed)[place])
    assert torch.allclose(found.log_probs, log_probs, atol=1e-5)
    assert read(states, Vocabulary.of(table, [0, 4])).mean is None


@pytest.mark.parametrize("distance", [-500.0, 0.0, 60.0, 500.0])
def test_read_where_a_barred_token_is_likeliest(distance):
    """Log-probabilities and means stay finite and right however far it is ahead."""
    table = torch.eye(5)
    states = torch.tensor([[1.0, 3.0, 2.0, 1.0, 0.0]]) + torch.tensor([distance, 0, 0, 0, 0])
    found = read(states, Vocabulary.of(table, [0]), mean=True)
    logits = states.double()
    assert found.tokens.item() == 1
    assert found.log_probs.item() == pytest.approx((logits[:, 1] - logits[:, 1:].logsumexp(-1)).item(), abs=1e-5)
    assert torch.allclose(found.mean.double(), logits.softmax(-1), atol=1e-5)
