import contextlib
import copy
from functools import partial

import pytest
from fairseq.logging import metrics
import torch
from helpers import batch, criterion, flow_criterion, flow_model, model, model_config, pad, sentences, task

from fastdiss_fairseq import compat
from fastdiss_fairseq.compat import before_loading
from fastdiss_fairseq.diffusion.noise import fold
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.models.config import FASTDISS_ARCHITECTURES
from fastdiss_fairseq.models.base import check_dictionary, check_weights
from fastdiss_fairseq.models import fastdiss
from fastdiss_fairseq.models.fastdiss import FastDiSSModel
from fastdiss_fairseq.tools.memory import working_memory_mb

OFF = dict(no_scp=True, no_mans=True)
SOURCES, TARGETS = sentences(8, seed=1), sentences(8, seed=2, shortest=1)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("arch", FASTDISS_ARCHITECTURES)
def test_every_architecture_builds_and_its_layers_have_its_sizes(arch):
    cfg = model_config(arch)
    built = FastDiSSModel.build_model(cfg, task())
    for side, layers in (("encoder", built.encoder.layers), ("decoder", built.denoiser.layers)):
        assert len(layers) == getattr(cfg, f"{side}_layers")
        assert layers[0].feed_forward.inner.weight.shape == (
            getattr(cfg, f"{side}_ffn_embed_dim"),
            getattr(cfg, f"{side}_embed_dim"),
        )
        assert layers[0].self_attention.heads == getattr(cfg, f"{side}_attention_heads")
        assert layers[0].pre_norm == (cfg.layer_norm_position == "pre")
    assert built.embedding.weight.shape == (40, cfg.latent_dim)


@pytest.mark.parametrize("arch, low, high", [("fastdiss_tiny", 1.5e6, 3.5e6), ("fastdiss_small", 8e6, 13e6)])
def test_number_of_parameters_with_8000_types(arch, low, high):
    assert low < parameters(FastDiSSModel.build_model(model_config(arch), task(8000))) < high


@pytest.mark.parametrize("arch", FASTDISS_ARCHITECTURES)
def test_registered_with_fairseq_under_its_name(arch):
    from fairseq.models import ARCH_MODEL_REGISTRY

    assert issubclass(ARCH_MODEL_REGISTRY[arch], FastDiSSModel)


def test_shared_embeddings_have_fewer_parameters_and_one_table():
    shared, separate = model(share_all_embeddings=True), model()
    # the encoder's table (40 x 32) gives way to a projection (16 x 32 and its bias)
    assert parameters(separate) - parameters(shared) == 40 * 32 - (16 * 32 + 32)
    assert shared.encoder.embedding.latent is shared.embedding
    names = [name for name, _ in shared.named_parameters()]
    assert "embedding.weight" in names and not any("latent" in name for name in names)
    copied = copy.deepcopy(shared)
    assert copied.encoder.embedding.latent is copied.embedding


@pytest.mark.parametrize("make", [model, partial(flow_model, step_aware=True)])
def test_shared_embeddings_are_saved_under_one_name(make):
    """fairseq's moving average would decay them twice otherwise; older checkpoints have two."""
    net, other = make(share_all_embeddings=True), make(share_all_embeddings=True, seed=5)
    state = net.state_dict()
    assert set(dict(net.named_parameters())) == {name for name in state if "version" not in name}
    for name in [name for name in state if name.endswith("embedding.weight")]:
        state[name.replace("embedding.weight", "encoder.embedding.latent.weight")] = state[name]
    before_loading(other, check_weights)
    other.load_state_dict(state)
    assert torch.equal(other.encoder.embedding.latent.weight, net.embedding.weight)


def test_shared_embeddings_need_one_dictionary():
    with pytest.raises(FastDiSSError, match="joined dictionary"):
        model(task(40, 41), share_all_embeddings=True)
    model(task(40, 41))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder_attention_heads": 3}, "--encoder-embed-dim"),
        ({"decoder_attention_heads": 5}, "--decoder-embed-dim"),
        ({"noise_factor": 0.0}, "--noise-factor"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(FastDiSSError, match=message):
        model(**options)


@pytest.mark.parametrize("which, sizes", [("target", (40, 45)), ("source", (45, 40))])
def test_a_checkpoint_of_another_dictionary_names_both_sizes(which, sizes):
    state = model(task(40, 40)).state_dict()
    other = model(task(*sizes))
    before_loading(other, check_dictionary)
    with pytest.raises(FastDiSSError, match="45 types, the checkpoint 40"):
        other.load_state_dict(state)


def test_another_width_is_not_taken_for_another_dictionary():
    """With shared embeddings a projection to the width begins with the embeddings' name, too."""
    state = model(share_all_embeddings=True, encoder_embed_dim=16).state_dict()
    other = model(share_all_embeddings=True, encoder_embed_dim=32)
    before_loading(other, check_dictionary)
    before_loading(other, check_weights)
    with pytest.raises(FastDiSSError, match="weights do not fit"):
        other.load_state_dict(state)


@pytest.mark.parametrize("which", ["source_dictionary", "target_dictionary"])
def test_a_checkpoint_of_a_dictionary_in_another_order_is_refused(which):
    swapped, state = task(40, 40), model(task(40, 40)).state_dict()
    words = getattr(swapped, which).symbols
    words[10], words[11] = words[11], words[10]
    other = model(swapped)
    before_loading(other, check_dictionary)
    with pytest.raises(FastDiSSError, match="other words or another order"):
        other.load_state_dict(state)


@pytest.mark.parametrize("name", [None, "dictionaries"])
def test_a_checkpoint_from_before_dictionaries_were_recorded_so_loads(name):
    other, state = model(seed=5), model().state_dict()
    before_loading(other, check_dictionary)
    checksums = state.pop("dictionary_versions")
    if name:
        state[name] = checksums
    other.load_state_dict(state)
    assert torch.equal(other.embedding.weight, model().embedding.weight)


def test_a_checkpoint_of_the_same_dictionary_loads():
    other = model(seed=5)
    before_loading(other, check_dictionary)
    other.load_state_dict(model().state_dict())
    assert torch.equal(other.embedding.weight, model().embedding.weight)


def run(loss, net, sources=SOURCES, targets=TARGETS, ids=None):
    net.zero_grad()
    total, tokens, logs = loss(net, batch(sources, targets, ids))
    total.backward()
    return total.detach(), tokens, logs, {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("weights", [(1.0, 0.1), (3.0, 0.0), (0.0, 2.0)])
def test_the_loss_is_the_weighted_sum_of_its_parts(weights):
    diffusion, length = weights
    loss = criterion(diffusion_loss_weight=diffusion, length_loss_factor=length)
    total, tokens, logs, _ = run(loss, model())
    expected = diffusion * logs["diffusion_loss"] + logs["rounding_loss"] + length * logs["length_loss"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert tokens == logs["sample_size"] == sum(map(len, TARGETS)) and logs["nsentences"] == 8


def test_losses_by_hand():
    """Each loss written out for each token, from the model's own output."""
    net, loss = model(), criterion(**OFF)
    sample = batch(SOURCES, TARGETS)
    output = net(sample["net_input"]["src_tokens"], sample["target"], loss.plan(sample["id"], 0))
    _, _, logs, _ = run(loss, net)
    centred = net.embedding.weight - net.embedding.weight.mean(1, keepdim=True)
    table = centred / centred.pow(2).mean(1, keepdim=True).sqrt()
    squared, rounding, lengths = 0.0, 0.0, 0.0
    for i, words in enumerate(TARGETS):
        for j, word in enumerate(words):
            estimate = output.training.estimate[i, j]
            squared += (estimate - table[word]).pow(2).mean()
            rounding -= (table @ estimate).log_softmax(0)[word]
        source = net.encode(sample["net_input"]["src_tokens"][i : i + 1])
        offset = max(-8, min(8, len(words) - len(SOURCES[i])))
        lengths -= len(words) * source.length_logits[0].log_softmax(0)[offset + 8]
    for name, expected in (("diffusion_loss", squared), ("rounding_loss", rounding), ("length_loss", lengths)):
        assert logs[name].item() == pytest.approx(expected.item(), rel=1e-4), name


@pytest.mark.parametrize("options", [OFF, {}, {"scp_hops": 2, "scp_rule": "uniform", "mans_start": 0.0}], ids=str)
@pytest.mark.parametrize("update", [0, 900])
def test_two_half_batches_sum_to_the_whole(options, update):
    net, loss = model().train(), criterion(**options)
    net.set_num_updates(update)
    total, tokens, logs, gradient = run(loss, net)
    halves = [run(loss, net, SOURCES[i : i + 4], TARGETS[i : i + 4], range(i, i + 4)) for i in (0, 4)]
    assert sum(half[0] for half in halves).item() == pytest.approx(total.item(), rel=1e-5)
    assert sum(half[1] for half in halves) == tokens
    for name in ("diffusion_loss", "rounding_loss", "length_loss", "t", "token_t", "gap", "moved", "conditioned"):
        found = float(sum(half[2][name] for half in halves))
        assert found == pytest.approx(float(logs[name]), rel=1e-4, abs=1e-5), name
    for name, whole in gradient.items():
        parts = halves[0][3][name] + halves[1][3][name]
        assert torch.allclose(parts, whole, atol=1e-5 * max(1, whole.abs().max().item())), name


def test_every_parameter_has_a_gradient():
    for options in ({}, {"share_all_embeddings": True}, {"encoder_learned_pos": True, "decoder_learned_pos": True}):
        gradients = run(criterion(), model(**options))[3]
        assert not [name for name, gradient in gradients.items() if not gradient.any()]


def plan(update=900, **options):
    return criterion(**options).plan(torch.arange(3), update)


def test_switches_of_scp_and_mans():
    assert plan(**OFF).scp is None and plan(**OFF).beta == 1
    assert plan(no_mans=True).scp is not None and plan(no_mans=True).beta == 1
    assert plan(no_scp=True).scp is None and plan(no_scp=True).beta == 2
    assert plan().scp.rule == "budget" and plan().scp.budgets == (2, 3, 5, 10, 20)


def test_phases_of_mans_are_fractions_of_the_run():
    table = {"mans_scale": [2.0, 3.0, 4.0], "mans_phase": [0.5, 0.75], "mans_start": 0.25}
    assert [plan(n, **table).beta for n in (0, 249, 250, 499, 500, 749, 750)] == [1, 1, 2, 2, 3, 3, 4]
    assert [plan(n).beta for n in (0, 749, 750, 999)] == [1, 1, 2, 2]


def test_plans_keys_change_with_the_update_the_seed_and_the_sentence():
    keys = torch.cat([plan(0).key, plan(1).key, plan(0, seed=2).key])
    assert len(keys.unique()) == 9
    assert torch.equal(plan(1).key, plan(1).key)


def test_validation_uses_the_same_noise_at_every_update():
    net, loss = model().eval(), criterion(**OFF)
    first = run(loss, net)[0]
    net.set_num_updates(77)
    assert torch.equal(run(loss, net)[0], first)
    net.train()
    assert not torch.equal(run(loss, net)[0], first)


def test_mans_moves_tokens_of_a_model_that_is_right():
    """A denoiser that gives its input back is right at little noise: only tokens with small t move."""
    net = model(noise_factor=0.5)
    net.denoise = lambda z, t, z_bar, mask, memory: z
    loss = criterion(no_scp=True, mans_start=0.0)
    net.train().set_num_updates(900)
    with torch.no_grad():
        _, tokens, logs = loss(net, batch(SOURCES, TARGETS))
    assert 0 < logs["moved"] <= tokens
    assert logs["token_t"] > logs["t"]


def test_scp_reports_its_gap():
    net = model()
    assert run(criterion(), net)[2]["gap"] > 0
    assert run(criterion(no_scp=True), net)[2]["gap"] == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scp_hops": 3}, "hops"),
        ({"scp_budgets": [0]}, "budgets"),
        ({"mans_scale": [2.0, 3.0]}, "boundaries"),
        ({"mans_scale": [2.0, 3.0, 4.0], "mans_phase": [0.9, 0.1]}, "increase"),
        ({"max_update": 0}, "--max-update"),
    ],
)
def test_criterion_errors_are_the_users(options, message):
    with pytest.raises(FastDiSSError, match=message):
        criterion(**options)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, []),
        ({"self_conditioning_prob": 1.0}, ["--self-conditioning-prob 1: decoding begins without an estimate"]),
        ({"self_conditioning_prob": 0.0}, ["so SCP changes nothing"]),
        ({"mixed_times": 1.0}, ["so MANS changes nothing"]),
        ({"no_scp": True, "no_mans": True}, []),
        (
            {"no_scp": True, "scp_hops": 2, "scp_budgets": [2, 3]},
            ["no effect on this training: --scp-hops, --scp-budgets"],
        ),
        (
            {"no_mans": True, "mans_scale": [3.0], "scp_hops": 2},
            ["--no-mans: no effect on this training: --mans-scale"],
        ),
        ({"self_conditioning_prob": 0.0, "mixed_times": 1.0, **OFF}, []),
    ],
    ids=str,
)
def test_what_has_no_effect_is_remarked_on(options, expected, caplog):
    criterion(**options)
    found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(found) == len(expected) and all(words in line for words, line in zip(expected, found))


def test_what_a_checkpoint_is_chosen_by_is_logged():
    loss = criterion()
    with metrics.aggregate(new_root=True) as logged:
        loss.reduce_metrics([run(loss, model())[2]])
    assert set(loss.measures) <= set(logged.get_smoothed_values())


def test_options_of_what_is_switched_off_are_not_read():
    criterion(no_mans=True, max_update=0, mans_scale=[2.0])
    criterion(no_scp=True, scp_hops=3)


def test_label_smoothing_mixes_in_the_uniform_distribution():
    net = model()
    sharp, smooth = (run(criterion(label_smoothing=s, **OFF), net)[2]["rounding_loss"] for s in (0.0, 0.1))
    sample = batch(SOURCES, TARGETS)
    output = net(sample["net_input"]["src_tokens"], sample["target"], criterion(**OFF).plan(sample["id"], 0))
    logits = output.training.estimate @ net.embedding.table().T
    uniform = -(logits.log_softmax(-1).mean(-1) * sample["target"].ne(1)).sum()
    assert smooth.item() == pytest.approx((0.9 * sharp + 0.1 * uniform).item(), rel=1e-5)


def test_exact_rounding_reads_the_true_embedding():
    net, loss = model(), criterion(rounding="exact", **OFF)
    sample = batch(SOURCES, TARGETS)
    output = net(sample["net_input"]["src_tokens"], sample["target"], loss.plan(sample["id"], 0))
    mask = sample["target"].ne(1)
    log_probs = (output.z_0 @ net.embedding.table().T).log_softmax(-1)
    expected = -log_probs.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1) * mask
    assert torch.allclose(output.rounding_loss, expected, atol=1e-5)
    assert run(loss, net)[2]["correct"] == sum(map(len, TARGETS))


@pytest.mark.torch_2
@torch.no_grad()
def test_half_precision_on_a_cpu_decodes_what_was_trained_with_autocast():
    tokens = batch(SOURCES)["net_input"]["src_tokens"]
    states = [net.encode(tokens).length_logits for net in (model(), model(autocast="bf16").half())]
    assert torch.allclose(*states, atol=0.05)


def test_bfloat16_autocast_is_close_to_single_precision():
    exact, rounded = model(), model(autocast="bf16")
    a, b = run(criterion(**OFF), exact), run(criterion(**OFF), rounded)
    assert b[0].dtype == torch.float32
    assert not torch.equal(a[0], b[0])
    assert b[0].item() == pytest.approx(a[0].item(), rel=0.02)
    assert all(torch.isfinite(gradient).all() for gradient in b[3].values())


@pytest.mark.parametrize("options", [OFF, {"mans_start": 0.0, "scp_hops": 2}], ids=str)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.torch_2), torch.bfloat16])
def test_half_precision_models_are_finite_and_close(options, dtype):
    net = model()
    exact = run(criterion(**options), net)[0]
    total, _, logs, gradients = run(criterion(**options), copy.deepcopy(net).to(dtype))
    assert torch.isfinite(total) and total.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert logs["loss"].dtype == torch.float32


@pytest.mark.parametrize("per_token", [False, True])
def test_the_network_sees_scaled_inputs(per_token, monkeypatch):
    net, seen = model(), []
    monkeypatch.setattr(net.denoiser, "forward", lambda z, *rest: seen.append(z) or z)
    z_0 = net.embedding(torch.randint(4, 40, (300, 8), generator=torch.Generator().manual_seed(1)))
    noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(2))
    for time in (0.0, 0.3, 1.0):
        t = torch.full((300, 8 if per_token else 1), time)
        z = net.process.diffuse(z_0, t, noise)
        net.denoise(z, net.time_inputs(t), torch.zeros_like(z_0), None, None)
        assert torch.allclose(seen[-1], z * net.process.input_scale(torch.tensor(time)))


@pytest.mark.parametrize("make, net", [(criterion, model), (flow_criterion, flow_model)])
def test_sentence_avg_divides_by_sentences(make, net):
    sizes = [make(sentence_avg=flag)(net(), batch(SOURCES, TARGETS))[1:] for flag in (False, True)]
    assert [int(size) for size, _ in sizes] == [sum(map(len, TARGETS)), len(TARGETS)]
    assert all(int(logs["sample_size"]) == int(size) for size, logs in sizes)


def leaves(function):
    """The numbers (id) of all tensors that a result's gradient reaches."""
    found, seen, waiting = set(), set(), [function]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found |= {id(node.variable)} if hasattr(node, "variable") else set()
        waiting += [before for before, _ in node.next_functions]
    return found


def test_weights_cast_without_gradients_are_not_used_with_them():
    """``--amp`` has autocast around the whole step, and torch 1.12 keeps what it has cast."""
    net, loss = model().train(), criterion(mans_start=0.0, self_conditioning_prob=1.0)
    net.set_num_updates(900)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reached = leaves(loss(net, batch(SOURCES, TARGETS))[0].grad_fn)
    assert not [name for name, weight in net.named_parameters() if id(weight) not in reached]


@pytest.mark.torch_2
@pytest.mark.parametrize("serve", [True, False])
def test_weights_are_cast_once_for_all_passes(serve, monkeypatch):
    """Where what passes without gradients have cast serves the last as well; the gradients are the same."""
    from fastdiss_fairseq.tools.operators import operators

    net, loss = model(autocast="bf16").train(), criterion(mans_start=0.0, self_conditioning_prob=1.0)
    net.set_num_updates(900)
    casts_serve, sample = compat.casts_have_gradients(), batch(SOURCES, TARGETS)

    def gradients():
        net.zero_grad()
        loss(net, sample)[0].backward()
        return [weight.grad for weight in net.parameters()]

    if casts_serve:
        monkeypatch.setattr(compat, "casts_have_gradients", lambda: serve)
    shared = gradients()
    counted = operators(lambda _: loss(net, sample), None)
    monkeypatch.setattr(fastdiss, "kept_casts", contextlib.nullcontext)
    assert all(map(torch.equal, shared, gradients()))
    assert counted < operators(lambda _: loss(net, sample), None)


def test_working_memory_is_the_most_held_at_once():
    mib = 2**18  # floats

    def run(count):
        kept = [torch.ones(mib) for _ in range(count)]
        for _ in range(3):
            torch.ones(2 * mib)
        return kept[0]

    held = run(1)
    assert working_memory_mb(run, 4, torch.device("cpu")) == pytest.approx(6, abs=0.1)
    assert working_memory_mb(lambda tensor: tensor.mul_(2), held, torch.device("cpu")) < 0.1


def test_scp_and_mans_need_no_more_memory():
    """Their passes without gradients are over before what needs most of it, and keep little."""
    samples = batch(
        [[4 + (i + j) % 20 for j in range(20)] for i in range(64)],
        [[4 + (i * j) % 20 for j in range(25)] for i in range(64)],
    )

    def needed(**switches):
        net, loss = model().train(), criterion(mans_start=0.0, self_conditioning_prob=1.0, **switches)
        net.set_num_updates(900)
        return working_memory_mb(lambda sample: loss(net, sample)[0].backward(), samples, torch.device("cpu"))

    assert needed() <= 1.1 * needed(no_scp=True, no_mans=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sources_are_cut_behind_whatever_the_side_of_padding(side):
    net, limit = model(), 64
    tokens = pad([[5] * 100, [7, 8, 9, 2]])
    if side == "left":
        tokens = tokens.flip(1)
        tokens[1, -4:] = torch.tensor([7, 8, 9, 2])
    together, alone = net.encode(tokens), net.encode(torch.tensor([[7, 8, 9, 2]]))
    assert together.lengths.tolist() == [limit, 4]
    assert torch.allclose(together.length_logits[1], alone.length_logits[0], atol=1e-5)


def test_over_long_sentences_are_cut():
    net, loss = model(), criterion(**OFF)
    limit = net.max_positions()[0]
    longs = [[5] * 100 + [2], [6] * 90 + [2]]
    total, tokens, _, _ = run(loss, net, longs, longs)
    assert tokens == 2 * limit and torch.isfinite(total)


def test_training_noise_of_a_sentence_ignores_its_batch():
    plans = [criterion().plan(torch.tensor(ids), 3).key for ids in ([4, 9], [9])]
    assert plans[0][1] == plans[1][0] == fold(torch.tensor(9), "training", 1, 3)


def test_validation_is_that_of_update_0_without_mans():
    loss = criterion(mans_start=0.0)
    plan = loss.plan(torch.arange(3), 900, training=False)
    assert plan.beta == 1 and loss.plan(torch.arange(3), 900).beta > 1
    assert torch.equal(plan.key, loss.plan(torch.arange(3), 0).key)
