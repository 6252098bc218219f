import pytest
import torch

from fastdiss_fairseq.diffusion.noise_scaling import PhaseTable, token_times

T = torch.tensor([[0.1], [0.4], [0.9]])
CORRECT = torch.tensor([[True, False, True], [False, False, True], [True, True, False]])


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("per_token", [False, True])
def test_right_tokens_move_to_beta_t_and_others_stay(beta, per_token):
    t = T * torch.tensor([1.0, 0.5, 0.25]) if per_token else T
    moved = token_times(t, CORRECT, beta)
    assert moved.shape == CORRECT.shape
    for i in range(3):
        for j in range(3):
            own = t.expand(3, 3)[i, j].item()
            expected = min(beta * own, 1) if CORRECT[i, j] else own
            assert moved[i, j].item() == pytest.approx(expected)


def test_no_time_is_beyond_one():
    assert token_times(T, CORRECT, 1000.0)[CORRECT].eq(1).all()


def test_padding_stays_where_it_is():
    """Padding is never right, so its time is the sentence's."""
    mask = torch.tensor([[True, True, False]] * 3)
    moved = token_times(T, CORRECT & mask, 3.0)
    assert torch.equal(moved[:, 2:], T)


def scales_over(table, changes):
    """The scale just before and just at each of ``changes``."""
    return [(table(update - 1), table(update)) for update in changes]


def test_the_papers_table_for_wmt14():
    table = PhaseTable((2, 3, 4), (100_000, 200_000))
    assert table(0) == 2
    assert scales_over(table, (100_000, 200_000)) == [(2, 3), (3, 4)]
    assert table(10**9) == 4


def test_scale_is_one_before_the_start():
    table = PhaseTable((2, 3), (50,), start=20)
    assert table(0) == 1
    assert scales_over(table, (20, 50)) == [(1, 2), (2, 3)]


def test_fractions_of_max_update():
    table = PhaseTable((2, 3, 4), (0.5, 0.75), start=0.25, max_update=1000)
    assert str(table) == "beta 2 from update 250 on, beta 3 from update 500 on, beta 4 from update 750 on"
    assert table(0) == 1
    assert scales_over(table, (250, 500, 750)) == [(1, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("max_update", [7, 999])
def test_fractions_that_are_no_whole_update_begin_at_the_next(max_update):
    table = PhaseTable((2,), (), start=0.3, max_update=max_update)
    first = next(n for n in range(max_update) if table(n) == 2)
    assert first - 1 < 0.3 * max_update <= first


def test_fractions_and_updates_mix_and_max_update_is_not_needed_for_updates():
    table = PhaseTable((2, 3), (700,), start=0.5, max_update=1000)
    assert scales_over(table, (500, 700)) == [(1, 2), (2, 3)]
    assert PhaseTable((2, 3), (700,), start=0, max_update=0)(0) == 2
    assert scales_over(PhaseTable((2, 3), (1,), start=2 / 3, max_update=9), (6, 9)) == [(1, 2), (2, 3)]
    assert scales_over(PhaseTable((2,), (), start=2, max_update=9), (2,)) == [(1, 2)]


def test_one_phase_from_the_first_update():
    table = PhaseTable((1.5,), ())
    assert {table(n) for n in (0, 1, 10**6)} == {1.5}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((2, 3), ()), "2 MANS scales need 1 phase boundaries, not 0"),
        (((2,), (5,)), "1 MANS scales need 0 phase boundaries, not 1"),
        (((2, 0.5), (5,)), "at least 1, not 0.5"),
        (((2, float("nan")), (5,)), "at least 1, not nan"),
        (((float("inf"),), ()), "at least 1, not inf"),
        (((2, 3, 4), (200, 100)), "must increase"),
        (((2, 3, 4), (100, 100)), "must increase"),
        (((2, 3), (10,), 20), "must increase"),
        (((2, 3), (10,), -1), "must increase|fraction"),
        (((2, 3), (0.5,)), "fraction of --max-update"),
        (((2,), (), 0.5), "fraction of --max-update"),
        (((2, 3), (0.6,), 900, 1000), "must increase"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        PhaseTable(*arguments)
