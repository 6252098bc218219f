import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastdiss_fairseq.compat import _attention_by_hand
from fastdiss_fairseq.modules.denoiser import Denoiser
from fastdiss_fairseq.modules.target import Memory
from fastdiss_fairseq.modules.embedding import LatentEmbedding, Positions, ProjectedEmbedding, ScaledEmbedding, sinusoid
from fastdiss_fairseq.modules.encoder import Encoder
from fastdiss_fairseq.modules.reference import ReferenceDenoiser
from fastdiss_fairseq.modules.rounding import mean_rows, nearest_token
from fastdiss_fairseq.modules.length import LengthPredictor
from fastdiss_fairseq.modules.transformer import KeyValues, LayerConfig, Layout, TransformerLayer, attention_bias

DIM, LATENT, LAYERS = 16, 6, 2
SIZES = LayerConfig(
    dim=DIM,
    ffn_dim=24,
    heads=4,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    activation="relu",
    pre_norm=True,
)
every_layout = pytest.mark.parametrize("learned", [False, True], ids=["sinusoidal", "learned"])
every_norm = pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])


def networks(learned=False, pre_norm=True, source_dim=20):
    """An encoder of another width than the denoiser's, and the denoiser."""
    torch.manual_seed(0)
    cfg = replace(SIZES, pre_norm=pre_norm)
    encoder = Encoder(
        replace(cfg, dim=source_dim), LAYERS, ScaledEmbedding(30, source_dim, 1), Positions(40, source_dim, learned)
    )
    denoiser = Denoiser(replace(cfg, memory_dim=source_dim), LAYERS, LATENT, Positions(40, DIM, learned))
    return encoder.eval(), denoiser.eval()


def inputs(batch=3, length=7, source=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 30, (batch, source), generator=generator)
    z, z_bar = torch.randn(2, batch, length, LATENT, generator=generator)
    t = torch.rand(batch, 1, generator=generator)
    return tokens, z, t, z_bar


def run(encoder, denoiser, tokens, source_mask, z, t, z_bar, mask):
    memory = denoiser.memory(encoder(tokens, source_mask), source_mask)
    return denoiser(z, denoiser.time(t), z_bar, denoiser.target(mask), memory)


@every_layout
@every_norm
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@torch.no_grad()
def test_padding_changes_nothing(learned, pre_norm, left):
    encoder, denoiser = networks(learned, pre_norm)
    tokens, z, t, z_bar = inputs()
    ones = lambda x: torch.ones(x.shape[:2], dtype=torch.bool)
    expected = run(encoder, denoiser, tokens, ones(tokens), z, t, z_bar, ones(z))

    def grow(x, extra, filling):
        size = (len(x), extra, *x.shape[2:])
        junk = torch.full(size, filling, dtype=x.dtype)
        return torch.cat((junk, x) if left else (x, junk), dim=1)

    padded = run(
        encoder, denoiser,
        grow(tokens, 6, 1), grow(ones(tokens), 6, False),
        grow(z, 4, 9.0), t, grow(z_bar, 4, -9.0), grow(ones(z), 4, False),
    )  # fmt: skip
    assert torch.allclose(padded[:, 4:] if left else padded[:, :7], expected, atol=1e-5)


@every_norm
@torch.no_grad()
def test_a_time_for_each_token_equals_one_for_all_where_they_agree(pre_norm):
    encoder, denoiser = networks(pre_norm=pre_norm)
    tokens, z, t, z_bar = inputs()
    mask, source_mask = torch.ones(z.shape[:2], dtype=torch.bool), torch.ones_like(tokens, dtype=torch.bool)
    one = run(encoder, denoiser, tokens, source_mask, z, t, z_bar, mask)
    each = run(encoder, denoiser, tokens, source_mask, z, t.expand(-1, z.size(1)), z_bar, mask)
    assert torch.allclose(one, each, atol=1e-5)


@pytest.mark.parametrize("changed", ["source", "z", "t", "token t", "z_bar", "other position"])
@torch.no_grad()
def test_every_input_matters(changed):
    encoder, denoiser = networks()
    tokens, z, t, z_bar = inputs()
    mask, source_mask = torch.ones(z.shape[:2], dtype=torch.bool), torch.ones_like(tokens, dtype=torch.bool)
    t = t.repeat(1, z.size(1))
    before = run(encoder, denoiser, tokens, source_mask, z, t, z_bar, mask)
    if changed == "source":
        tokens = tokens.flip(1)
    elif changed == "t":
        t = t / 2
    elif changed == "token t":
        t[:, 0] /= 2
    elif changed == "z_bar":
        z_bar = z_bar / 2
    else:
        z[:, 0 if changed == "z" else -1] += 1
    after = run(encoder, denoiser, tokens, source_mask, z, t, z_bar, mask)
    assert not torch.allclose(after[:, 0], before[:, 0], atol=1e-4)


@every_norm
@torch.no_grad()
def test_the_reference_path_agrees(pre_norm):
    """fairseq's own decoder layers with the same weights, candidates copying their source, give the same values."""
    cfg = replace(SIZES, pre_norm=pre_norm, memory_dim=20)
    encoder, denoiser = networks(pre_norm=pre_norm)
    reference = ReferenceDenoiser(denoiser, cfg)
    tokens, *_ = inputs(batch=2)
    _, z, _, z_bar = inputs(batch=6, seed=2)
    t = torch.full((1, 1), 0.4)
    source_mask = torch.ones_like(tokens, dtype=torch.bool)
    source_mask[1, 3:] = False
    mask = torch.arange(7) < torch.tensor([[7], [6], [5], [4], [3], [7]])
    states = encoder(tokens, source_mask)
    fast = denoiser(z, denoiser.time(t), z_bar, denoiser.target(mask), denoiser.memory(states, source_mask))
    slow = reference(z, denoiser.time(t), z_bar, reference.target(mask), reference.memory(states, source_mask))
    assert fast[mask].std() > 1e-3
    assert torch.allclose(fast[mask], slow[mask], atol=1e-6)


@every_norm
@torch.no_grad()
def test_candidates_share_their_sentences_memory(pre_norm):
    """Candidates of one sentence follow each other and give what copies of the memory give."""
    encoder, denoiser = networks(pre_norm=pre_norm)
    tokens, *_ = inputs(batch=2)
    _, z, t, z_bar = inputs(batch=6, seed=2)
    source_mask = torch.ones_like(tokens, dtype=torch.bool)
    source_mask[1, 3:] = False
    mask = torch.arange(7) < torch.tensor([[7], [6], [5], [4], [3], [7]])
    memory = denoiser.memory(encoder(tokens, source_mask), source_mask)
    target = denoiser.target(mask)
    shared = denoiser(z, denoiser.time(t), z_bar, target, memory)
    copies = denoiser(z, denoiser.time(t), z_bar, target, memory.select(torch.tensor([0, 0, 0, 1, 1, 1])))
    assert torch.allclose(shared[mask], copies[mask], atol=1e-5)
    swapped = denoiser(z, denoiser.time(t), z_bar, target, memory.select(torch.tensor([1, 0])))
    assert not torch.allclose(shared[mask], swapped[mask], atol=1e-3)


@every_norm
@torch.no_grad()
def test_packed_batches_give_what_padded_ones_give(pre_norm):
    """Evaluation leaves padding out of the computation, training (here without dropout) does not."""
    encoder, denoiser = networks(pre_norm=pre_norm)
    tokens, z, t, z_bar = inputs(batch=3)
    source_mask = torch.arange(5) < torch.tensor([[5], [2], [4]])
    mask = torch.arange(7) < torch.tensor([[3], [7], [1]])
    for times in (t, t.expand(3, 7), t[:1]):
        packed = run(encoder.eval(), denoiser.eval(), tokens, source_mask, z, times, z_bar, mask)
        padded = run(encoder.train(), denoiser.train(), tokens, source_mask, z, times, z_bar, mask)
        assert torch.allclose(packed[mask], padded[mask], atol=1e-5)
        assert packed[~mask].eq(0).all() and padded[~mask].ne(0).any()
    target = denoiser.eval().target(mask)
    assert target.positions.shape == (11, DIM)
    assert torch.equal(target.select(torch.tensor([2, 0])).positions, target.positions[[10, 0, 1, 2]])


def test_biases_are_of_the_precision_of_attention(monkeypatch):
    """Which on a GPU is that of autocast, entered after a target was laid out."""
    tokens, z, t, z_bar = inputs()
    encoder, denoiser = networks()
    source_mask, mask = torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 7, dtype=torch.bool)
    memory, shared = denoiser.memory(encoder(tokens, source_mask), source_mask), denoiser.target(mask)
    seen = []
    monkeypatch.setattr("fastdiss_fairseq.modules.target.attention_dtype", lambda x: torch.float64)
    for layer in denoiser.layers:
        monkeypatch.setattr(
            layer, "forward", lambda x, layout, bias, _, other, *rest: seen.extend([bias.dtype, other.dtype]) or x
        )
    denoiser(z, denoiser.time(t), z_bar, shared, memory)
    assert len(seen) == 2 * len(denoiser.layers) and set(seen) == {torch.float64}


def test_memory_selects_sentences():
    layers = tuple(KeyValues(*torch.randn(2, 3, 4, 5, 2)) for _ in range(2))
    memory = Memory(layers, torch.randn(3, 1, 1, 5))
    chosen = memory.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.bias, memory.bias[[2, 0]])
    for kept, layer in zip(chosen.layers, layers):
        assert torch.equal(kept.keys, layer.keys[[2, 0]]) and torch.equal(kept.values, layer.values[[2, 0]])


@torch.no_grad()
def test_post_norm_layers_end_normalised_and_pre_norm_stacks_too():
    tokens, *_ = inputs()
    for pre_norm in (True, False):
        states = networks(pre_norm=pre_norm)[0](tokens, torch.ones_like(tokens, dtype=torch.bool))
        assert torch.allclose(states.mean(-1), torch.zeros(3, 5), atol=1e-5)
        assert torch.allclose(states.var(-1, unbiased=False), torch.ones(3, 5), atol=1e-3)


@torch.no_grad()
def test_pre_norm_keeps_the_residual_path_and_post_norm_does_not():
    x, mask = torch.randn(2, 4, DIM), torch.ones(2, 4, dtype=torch.bool)
    for pre_norm, expected in ((True, x), (False, F.layer_norm(F.layer_norm(x, (DIM,)), (DIM,)))):
        layer = TransformerLayer(replace(SIZES, pre_norm=pre_norm))
        for silenced in (layer.self_attention.output, layer.feed_forward.outer):
            silenced.weight.zero_()
        assert torch.allclose(layer(x, Layout(mask), attention_bias(mask, x)), expected, atol=1e-5)


@pytest.mark.torch_2
@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand_is_torchs(masked):
    query, key, value = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(6) < torch.tensor([4, 6]).view(2, 1, 1, 1) if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    bias = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -float("inf"))
    assert torch.allclose(_attention_by_hand(query, key, value, bias), expected, atol=1e-5)


def test_attention_by_hand_drops_weights():
    query, key = torch.zeros(2, 1, 1, 1000, 4)
    torch.manual_seed(0)
    weights = _attention_by_hand(query, key, torch.eye(1000).view(1, 1, 1000, 1000), dropout_p=0.25)
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert weights.sum(-1).mean().item() == pytest.approx(1, abs=0.01)


def test_positions_count_real_tokens_only():
    for learned in (False, True):
        positions = Positions(10, DIM, learned)
        right = positions(torch.tensor([[True, True, True, False]]))
        left = positions(torch.tensor([[False, True, True, True]]))
        assert torch.equal(right[:, :3], left[:, 1:])
        assert len(right[0, :3].unique(dim=0)) == 3


def test_sinusoid_by_formula():
    found = sinusoid(torch.tensor([0.0, 2.5]), 4)
    rates = [1.0, 1e-4]
    for row, value in zip(found, (0.0, 2.5)):
        expected = [math.sin(value * r) for r in rates] + [math.cos(value * r) for r in rates]
        assert row.tolist() == pytest.approx(expected, abs=1e-6)


def test_latent_embedding_is_normalised_and_the_largest_logit_is_the_nearest_token():
    torch.manual_seed(0)
    embedding = LatentEmbedding(50, 16)
    torch.nn.init.normal_(embedding.weight, mean=3.0, std=5.0)
    rows = embedding(torch.arange(50))
    assert torch.allclose(rows.mean(-1), torch.zeros(50), atol=1e-5)
    assert torch.allclose(rows.pow(2).mean(-1), torch.ones(50), atol=1e-4)
    z = torch.randn(30, 16)
    nearest = torch.cdist(z, rows).argmin(-1)
    assert torch.equal(nearest_token(z, embedding.table()), nearest)
    assert torch.equal(nearest_token(rows, embedding.table()), torch.arange(50))


def converted(embedding):
    embedding.half().float()  # rounds the weights


def loaded(embedding):
    embedding.load_state_dict({"weight": torch.randn(30, 8)})


def written(embedding):
    embedding.weight.mul_(torch.rand(30, 8))


def written_in_secret(embedding):
    embedding.weight.data.mul_(torch.rand(30, 8))


@pytest.mark.parametrize("change", [converted, loaded, written, written_in_secret])
@torch.no_grad()
def test_the_table_is_kept_for_inference_until_the_weights_change(change):
    embedding = LatentEmbedding(30, 8)
    assert embedding.table() is not embedding.table()
    embedding.make_generation_fast_(name="embedding")
    with torch.inference_mode():
        kept = embedding.table()
    assert embedding.table() is kept and torch.equal(kept, embedding(torch.arange(30))) and not kept.is_inference()
    change(embedding)
    assert torch.equal(embedding.table(), embedding(torch.arange(30))) and not torch.equal(embedding.table(), kept)
    with torch.enable_grad():
        assert embedding.table().requires_grad


def test_expected_embedding_is_the_posterior_mean():
    """Logits alpha/sigma^2 z are the exact posterior of a row under Gaussian noise, since rows have equal norms."""
    torch.manual_seed(0)
    embedding = LatentEmbedding(50, 16)
    z, rows = torch.randn(30, 16), embedding(torch.arange(50))
    weights = torch.softmax(-(torch.cdist(z.double(), rows.double()) ** 2) / 2, dim=-1)
    assert torch.allclose(mean_rows(z, embedding.table()), (weights @ rows.double()).float(), atol=1e-4)
    assert torch.allclose(mean_rows(100 * rows, embedding.table()), rows, atol=1e-4)


def test_encoder_embeddings():
    torch.manual_seed(0)
    scaled = ScaledEmbedding(30, 16, 1)
    assert torch.equal(scaled(torch.tensor([5])), scaled.table.weight[[5]] * 4)
    assert not scaled(torch.tensor([1])).any()
    shared = ProjectedEmbedding(LatentEmbedding(30, LATENT), DIM)
    expected = shared.project(shared.latent(torch.tensor([5])))
    assert torch.equal(shared(torch.tensor([5])), expected)


def test_length_logits_are_of_the_mean_real_state():
    torch.manual_seed(0)
    predictor = LengthPredictor(DIM, 3)
    states = torch.randn(2, 5, DIM)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = predictor(states, mask)
    assert torch.allclose(found[0], predictor.output(states[0].mean(0)), atol=1e-6)
    assert torch.allclose(found[1], predictor.output(states[1, :2].mean(0)), atol=1e-6)


def test_length_loss_is_the_cross_entropy_of_the_offset_clipped():
    predictor = LengthPredictor(DIM, 2)
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    loss = predictor.loss(logits, torch.tensor([5, 5, 5, 5]), torch.tensor([4, 7, 99, 1]))
    log_probs = logits.log_softmax(-1)
    assert loss.tolist() == pytest.approx([-log_probs[i, j].item() for i, j in enumerate((1, 4, 4, 0))])


def top(preferences, source, beam, longest, max_offset=5):
    """Lengths where offsets are preferred in this order."""
    logits = torch.full((1, 2 * max_offset + 1), -10.0)
    for rank, offset in enumerate(preferences):
        logits[0, offset + max_offset] = 5.0 - rank
    return LengthPredictor(DIM, max_offset).top(logits, torch.tensor([source]), beam, longest)[0][0].tolist()


@pytest.mark.parametrize(
    "preferences, source, beam, longest, expected",
    [
        ((0, 1, -1), 10, 3, 64, [10, 11, 9]),
        ((0, 1, -1), 10, 1, 64, [10]),
        ((-5, -4, 0), 5, 2, 64, [1, 5]),  # length 0 is impossible
        ((-5, -4, -3), 6, 3, 64, [1, 2, 3]),  # short outputs can be predicted
        ((5, 2, 3, 1), 10, 2, 12, [12, 11]),  # nothing beyond the longest
        ((0,), 500, 1, 64, [64]),  # a source far longer than any target
        ((0,), 500, 3, 64, [64, 64, 64]),
        ((0, 1), 1, 3, 2, [1, 2, 1]),  # fewer lengths than the beam: the likeliest again
    ],
)
def test_likeliest_lengths(preferences, source, beam, longest, expected):
    assert top(preferences, source, beam, longest) == expected


@pytest.mark.parametrize("longest", [1, 4, 64])
@pytest.mark.parametrize("beam", [1, 4, 11])
def test_all_lengths_are_in_range_whatever_the_source(beam, longest):
    source = torch.tensor([1, 2, 5, 8, 60, 70, 1000])
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(2))
    found, log_probs = LengthPredictor(DIM, 5).top(logits, source, beam, longest)
    assert found.shape == log_probs.shape == (7, beam)
    assert torch.isfinite(log_probs).all()
    assert (found >= 1).all() and (found <= longest).all()


def test_lengths_come_with_their_log_probabilities():
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(2))
    source = torch.tensor([20, 30, 40])
    found, log_probs = LengthPredictor(DIM, 5).top(logits, source, 4, 64)
    expected = logits.log_softmax(-1).gather(1, found - source.unsqueeze(1) + 5)
    assert torch.equal(log_probs, expected) and (log_probs.diff(dim=1) <= 0).all()
