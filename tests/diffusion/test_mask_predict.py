from dataclasses import replace

import pytest
import torch

from fastdiss_fairseq.diffusion.mask_predict import Network, least_confident, mask_predict, repeated
from fastdiss_fairseq.diffusion.noise import fold, uniform
from fastdiss_fairseq.diffusion.process import Process
from fastdiss_fairseq.diffusion.sampling import Sampler

S, C, T, D, V = 3, 2, 6, 4, 9
KEY = fold(torch.arange(S * C).view(S, C), "test")
MASK = torch.ones(S, C, T, dtype=torch.bool)
TRAINED = Process("sqrt", 4.0)
SAMPLER = Sampler(TRAINED, noise_factor=4.0, told_noise_factor=4.0, solver="mask_predict")
TABLE = torch.randn(V, D, generator=torch.Generator().manual_seed(0))


class Run:
    """A network, and roundings whose tokens and confidences are random but fixed by the evaluation."""

    def __init__(self, mask=MASK, steps=4, sampler=SAMPLER, key=KEY, same_tokens=False, **options):
        self.mask, self.key, self.same_tokens = mask, key, same_tokens
        self.z, self.unknown, self.conditions, self.found, self.refined = [], [], [], [], 0
        network = Network(self.denoise, self.read, self.embed)
        self.result = mask_predict(network, key, mask, D, steps, sampler, watched=True, **options)

    def denoise(self, z, unknown, z_bar, rows):
        self.z.append(z), self.unknown.append(unknown), self.conditions.append(z_bar)
        return z + z_bar + 1

    def read(self, estimate, rows, where, refine):
        number, place = 0 if self.same_tokens else len(self.unknown), torch.arange(self.mask.size(2))
        key = self.key[rows].unsqueeze(-1)
        tokens, log_probs = (uniform(fold(key, "token", number, place)) * V).long(), -uniform(fold(key, "p", place))
        self.found.append((tokens, log_probs))
        self.refined += refine
        return tokens, log_probs, 2 * estimate if refine else torch.full_like(estimate, float("nan"))

    def embed(self, tokens):
        return TABLE[tokens]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("self_conditioning, each", [("previous", 1), ("none", 1), ("recompute", 2)])
def test_number_of_evaluations(steps, self_conditioning, each):
    run = Run(steps=steps, sampler=replace(SAMPLER, self_conditioning=self_conditioning))
    assert len(run.unknown) == steps * each
    assert run.result.steps.tolist() == [steps] * S and len(run.result.history) == steps


@pytest.mark.parametrize("self_conditioning, expected", [("previous", 3), ("none", 0), ("recompute", 4)])
def test_only_what_is_used_is_refined(self_conditioning, expected):
    run = Run(steps=4, sampler=replace(SAMPLER, self_conditioning=self_conditioning))
    assert run.refined == expected
    assert all(condition.isfinite().all() for condition in run.conditions)


def test_the_first_step_knows_nothing_and_later_ones_more_and_more():
    run = Run(steps=3)
    assert [int(t.sum()) for t in run.unknown] == [S * C * T, S * C * 4, S * C * 2]


def test_known_tokens_are_the_most_confident_ones_and_stay():
    run = Run(steps=2)
    tokens, log_probs = run.found[0]
    unknown = run.unknown[1]
    assert (log_probs.masked_fill(unknown, 0).amin(-1) >= log_probs.masked_fill(~unknown, -9).amax(-1)).all()
    assert torch.equal(run.result.tokens, torch.where(unknown, run.found[1][0], tokens))
    assert torch.equal(run.result.log_probs, torch.where(unknown, run.found[1][1], log_probs))


def test_known_tokens_enter_clean_and_unknown_ones_as_fresh_noise():
    run = Run(steps=2)
    unknown = run.unknown[1]
    clean = TABLE[run.found[0][0]] * TRAINED.alpha(torch.zeros(()))
    assert torch.equal(run.z[1][~unknown], clean[~unknown])
    assert (run.z[1][unknown] != run.z[0][unknown]).all()
    assert run.z[0].std().item() == pytest.approx(TRAINED.sigma(torch.ones(())).item(), rel=0.2)
    cold = Run(steps=2, sampler=replace(SAMPLER, temperature=0.0))
    assert not cold.z[0].any() and not cold.z[1][cold.unknown[1]].any()


def test_estimates_are_reused_and_known_tokens_are_told_exactly():
    run = Run(steps=3)
    assert not run.conditions[0].any()
    assert torch.equal(run.conditions[1], 2 * (run.z[0] + 1))
    unknown = run.unknown[1]
    assert torch.equal(run.conditions[2][unknown], 2 * (run.z[1] + run.conditions[1] + 1)[unknown])
    assert torch.equal(run.conditions[2][~unknown], TABLE[run.result.history[0].tokens][~unknown])


def test_recompute_conditions_on_an_estimate_of_the_same_state():
    run = Run(steps=2, sampler=replace(SAMPLER, self_conditioning="recompute"))
    unknown = run.unknown[2]
    assert torch.equal(run.unknown[2], run.unknown[3]) and not run.conditions[2].any()
    assert torch.equal(run.conditions[3][unknown], 2 * (run.z[2] + 1)[unknown])
    none = Run(steps=3, sampler=replace(SAMPLER, self_conditioning="none"))
    assert not any(condition.any() for condition in none.conditions)


def test_padding_is_never_known_before_a_real_token():
    mask = torch.arange(T) < torch.tensor([[6, 2], [1, 5], [3, 4]]).unsqueeze(-1)
    log_probs = -torch.rand(S, C, T, generator=torch.Generator().manual_seed(3))
    unknown = least_confident(log_probs, mask, 1, 2)
    assert torch.equal(unknown.sum(-1), mask.sum(-1) // 2) and not unknown[~mask].any()


def test_the_less_certain_of_two_equal_neighbours_is_repeated():
    tokens = torch.tensor([[5, 5, 7, 7, 7, 5], [1, 2, 1, 2, 2, 3]])
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, -1.0, -2.0, -9.0], [-9.0, -9.0, -9.0, -2.0, -2.0, -1.0]])
    assert repeated(tokens, log_probs).nonzero().tolist() == [[0, 1], [0, 2], [0, 4], [1, 4]]


def test_repetitions_are_unknown_first_however_certain():
    class Stammering(Run):
        def read(self, estimate, rows, where, refine):
            _, log_probs, refined = super().read(estimate, rows, where, refine)
            return torch.tensor([1, 1, 2, 3, 3, 4]).expand_as(log_probs), log_probs / 9, refined

    unknown = Stammering(steps=2).unknown[1]
    assert (unknown[..., 0] | unknown[..., 1]).all() and (unknown[..., 3] | unknown[..., 4]).all()
    assert (unknown.sum(-1) == 3).all()


def test_equal_confidences_are_decided_by_position():
    assert least_confident(torch.zeros(1, 1, 4), torch.ones(1, 1, 4, dtype=torch.bool), 1, 2).tolist() == [
        [[True, True, False, False]]
    ]


def test_sentences_do_not_depend_on_each_other():
    together = Run().result
    for i in range(S):
        alone = Run(mask=MASK[i : i + 1], key=KEY[i : i + 1]).result
        assert torch.equal(alone.tokens[0], together.tokens[i])


def test_early_exit_skips_looking_again_at_what_no_longer_changes():
    run = Run(steps=12, same_tokens=True, early_exit=True)
    assert [int(t.sum()) // (S * C) for t in run.unknown] == [6, 5, 4, 3, 2, 1]
    assert run.result.steps.tolist() == [6] * S and len(run.result.history) == 12
    assert torch.equal(run.result.tokens, Run(steps=12, same_tokens=True).result.tokens)


def test_early_exit_skips_a_twentieth_of_the_steps_after_one_without_a_change():
    def looked_at(steps):
        run = Run(torch.ones(1, 1, 20, dtype=torch.bool), steps, key=KEY[:1, :1], same_tokens=True, early_exit=True)
        return [int(t.sum()) for t in run.unknown]

    assert looked_at(10) == [20, 18, 16, 14, 12, 10, 8, 6, 4, 2]
    assert looked_at(20) == [20, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1]
    assert looked_at(40) == [20, 19, 18, 16, 15, 13, 12, 10, 9, 7, 6, 4, 3, 1]


def test_early_exit_goes_on_with_what_changes():
    run = Run(steps=12, early_exit=True)
    assert run.result.steps.tolist() == [11] * S  # the twelfth looks at nothing
    assert torch.equal(run.result.tokens, Run(steps=12).result.tokens)


def test_early_exit_is_each_sentences_own():
    class Mixed(Run):
        def read(self, estimate, rows, where, refine):
            tokens, log_probs, refined = super().read(estimate, rows, where, refine)
            return torch.where(rows.view(-1, 1, 1) == 0, torch.arange(T), tokens), log_probs, refined

    run = Mixed(steps=12, early_exit=True)
    assert run.result.steps.tolist() == [6, 11, 11]
    assert torch.equal(run.result.tokens, Mixed(steps=12).result.tokens)
