"""FS-DFM in fairseq: model, criterion, both stages, and decoding through the common generator."""

from argparse import Namespace

import pytest
from fairseq.logging import metrics
import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from helpers import batch, flow_criterion, flow_model, model, model_config, sentences, task

from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.flow.jumps import JUMPS
from fastdiss_fairseq.flow.ladder import SMALLEST
from fastdiss_fairseq.flow.loss import generalised_kl
from fastdiss_fairseq.flow.teacher import TEACHERS
from fastdiss_fairseq.flow.training import corrupt
from fastdiss_fairseq.models.config import FSDFM_ARCHITECTURES
from fastdiss_fairseq.models.fsdfm import FSDFMModel
from fastdiss_fairseq.modules.places import Places

BOS, PAD, EOS = 0, 1, 2
SOURCES, TARGETS = sentences(8, seed=1), sentences(8, seed=2, shortest=1)
MANY = sentences(60, seed=4)
SAMPLE = batch(SOURCES, TARGETS)
every_source = pytest.mark.parametrize("source", ["uniform", "mask"])


def unlike(net, seed=3):
    """The model with weights of some size everywhere, also where they begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


NET = unlike(flow_model())


# Model


@pytest.mark.parametrize("arch", FSDFM_ARCHITECTURES)
def test_every_architecture_builds_with_the_sizes_of_fastdiss(arch):
    cfg = model_config(arch)
    built = FSDFMModel.build_model(cfg, task())
    assert issubclass(ARCH_MODEL_REGISTRY[arch], FSDFMModel)
    twin = model_config(arch.replace("fsdfm", "fastdiss"))
    for name in ("decoder_layers", "decoder_embed_dim", "decoder_ffn_embed_dim", "latent_dim", "layer_norm_position"):
        assert getattr(cfg, name) == getattr(twin, name)
    assert len(built.denoiser.layers) == cfg.decoder_layers


def predict(net, x, t, h, sources=SOURCES):
    mask = x.ne(PAD)
    memory = net.encode(batch(sources)["net_input"]["src_tokens"]).memory
    return net.predict(
        x, torch.as_tensor(t).view(-1, 1), torch.as_tensor(h).view(-1, 1), net.denoiser.target(mask), memory
    )


@torch.no_grad()
def test_the_norms_begin_as_plain_norms_and_then_hear_of_time_and_step():
    x = SAMPLE["target"]
    fresh = flow_model()
    assert torch.equal(predict(fresh, x, 0.1, 0.5), predict(fresh, x, 0.9, 0.25))
    before = predict(NET, x, 0.1, 0.5)
    for t, h in ((0.2, 0.5), (0.1, 0.25)):
        assert not torch.allclose(predict(NET, x, t, h), before, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("position", ["pre", "post"])
def test_padding_changes_nothing(position):
    net = unlike(flow_model(layer_norm_position=position))
    x = SAMPLE["target"][:4]
    wide = torch.nn.functional.pad(x, (0, 5), value=PAD)
    narrow = predict(net, x, 0.3, 0.5, SOURCES[:4])
    assert torch.allclose(
        predict(net, wide, 0.3, 0.5, SOURCES[:4])[:, : x.size(1)][x.ne(PAD)], narrow[x.ne(PAD)], atol=1e-5
    )


def test_special_tokens_have_no_probability():
    logits = NET.logits(torch.randn(5, 16), NET.table())
    assert (logits[:, [BOS, PAD, EOS]] == -float("inf")).all() and torch.isfinite(logits[:, 3:]).all()


@pytest.mark.parametrize(
    "options, message",
    [({"teacher_decay": 1.5}, "--teacher-decay"), ({"encoder_attention_heads": 3}, "--encoder-embed-dim")],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(FastDiSSError, match=message):
        flow_model(**options)


def test_a_dictionary_without_words_is_refused():
    with pytest.raises(FastDiSSError, match="no words"):
        flow_model(task(4))


# Losses


def run(loss, net, sources=SOURCES, targets=TARGETS, ids=None):
    net.zero_grad()
    total, tokens, logs = loss(net, batch(sources, targets, ids))
    total.backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return total.detach(), tokens, logs, grads


@every_source
def test_the_flow_loss_by_hand(source):
    net, loss = unlike(flow_model(noise_source=source)), flow_criterion(length_loss_factor=0.5)
    target = SAMPLE["target"]
    movable = target.ne(PAD) & target.ne(EOS)
    seen = corrupt(loss.plan(SAMPLE["id"], net), target, movable, net.process)
    states = predict(net, seen.x_t, *seen.steps)
    expected, words = 0.0, [3, *range(4, 40)]
    for i, j in movable.nonzero().tolist():
        log_p = torch.full((40,), -float("inf"))
        log_p[words] = (net.embedding.table()[words] @ states[i, j]).log_softmax(0)
        here, goal = log_p[seen.x_t[i, j]], log_p[target[i, j]]
        expected += generalised_kl(here, goal, seen.x_t[i, j] == target[i, j], seen.steps.t[i, 0]).item()
    total, tokens, logs, _ = run(loss, net)
    assert logs["flow_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert total.item() == pytest.approx(expected + 0.5 * logs["length_loss"].item(), rel=1e-4)
    assert tokens == sum(map(len, TARGETS)) and logs["words"] == movable.sum() and logs["teacher_loss"] == 0


@pytest.mark.parametrize("options", [{}, {"step_aware": True}, {"step_aware": True, "noise_source": "mask"}], ids=str)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_two_half_batches_sum_to_the_whole(options, teacher):
    net, loss = unlike(flow_model(**options)).train(), flow_criterion(step_size_tilt=0.0, teacher=teacher)
    total, tokens, logs, gradient = run(loss, net)
    halves = [run(loss, net, SOURCES[i : i + 4], TARGETS[i : i + 4], range(i, i + 4)) for i in (0, 4)]
    assert sum(half[0] for half in halves).item() == pytest.approx(total.item(), rel=1e-5)
    for name in ("flow_loss", "teacher_loss", "length_loss", "correct", "large", "words", "t"):
        assert sum(half[2][name] for half in halves).item() == pytest.approx(logs[name].item(), rel=1e-4), name
    assert (logs["teacher_loss"] > 0) == bool(options)
    for name, whole in gradient.items():
        parts = halves[0][3][name] + halves[1][3][name]
        assert torch.allclose(parts, whole, atol=1e-5 * max(1, whole.abs().max().item())), name


@pytest.mark.parametrize("options", [{}, {"step_aware": True}], ids=str)
def test_every_parameter_but_the_teachers_has_a_gradient(options):
    net = unlike(flow_model(**options)).train()
    found = run(flow_criterion(step_size_tilt=0.0), net)[3]
    assert {name for name, g in found.items() if g.any()} == {
        name for name, _ in net.named_parameters() if not name.startswith("teacher.")
    }


def test_losses_in_pieces_change_nothing(monkeypatch):
    net, loss = unlike(flow_model(step_aware=True)).train(), flow_criterion(step_size_tilt=0.0)
    whole = run(loss, net)
    monkeypatch.setattr("fastdiss_fairseq.modules.rounding.AT_ONCE", {"cpu": 3})
    pieces = run(loss, net)
    assert pieces[0].item() == pytest.approx(whole[0].item(), rel=1e-5)
    for name, gradient in whole[3].items():
        assert torch.allclose(pieces[3][name], gradient, atol=1e-4 * max(1, gradient.abs().max().item())), name


def test_validation_is_that_of_the_moving_average_at_update_0():
    net, loss = flow_model(step_aware=True), flow_criterion()
    first = run_validation(loss, net)
    unlike(net.teacher)
    assert run_validation(loss, net) != first
    changed = run_validation(loss, net)
    net.set_num_updates(50)
    net.embedding.weight.data.add_(1)
    assert run_validation(loss, net) == changed


@torch.no_grad()
def run_validation(loss, net):
    return float(loss(net.eval(), SAMPLE)[0])


# Stage B


def test_the_moving_average_follows_its_definition():
    net = flow_model(step_aware=True, teacher_decay=0.75)
    before = {name: p.clone() for name, p in net.teacher.named_parameters()}
    unlike(net).after_update()
    changed = 0
    for name, average in net.teacher.named_parameters():
        assert not average.requires_grad and not name.startswith("teacher")
        changed += not torch.equal(average, before[name])
    assert changed > 10
    net = flow_model(step_aware=True, teacher_decay=0.75)
    with torch.no_grad():
        net.embedding.weight.add_(1)
    net.after_update()
    assert torch.allclose(net.teacher.embedding.weight, before["embedding.weight"] + 0.25, atol=1e-6)


def test_the_teacher_is_never_in_training_mode():
    net = flow_model(step_aware=True, dropout=0.5).train()
    assert net.training and net.denoiser.training and not any(module.training for module in net.teacher.modules())


def test_half_precision_is_too_coarse_for_the_moving_average(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(FastDiSSError, match="too coarse for the moving average.*--autocast bf16"):
        task(fp16=True, cpu=False).build_model(flow_model(step_aware=True).cfg)


def test_a_model_of_stage_a_starts_both_student_and_teacher():
    net = flow_model(seed=5, step_aware=True)
    net.load_state_dict(NET.state_dict(), strict=True)
    for name, value in NET.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
        assert torch.equal(net.state_dict()["teacher." + name], value)


def test_decoding_loads_the_moving_average():
    both, found = flow_model(step_aware=True), flow_model(seed=5, step_aware=True)
    unlike(both.teacher)
    found.drop_teacher()
    found.load_state_dict(both.state_dict(), strict=True)
    assert all(torch.equal(value, both.teacher.state_dict()[name]) for name, value in found.state_dict().items())
    resumed = flow_model(seed=6, step_aware=True)
    resumed.load_state_dict(both.state_dict(), strict=True)
    assert all(torch.equal(value, both.state_dict()[name]) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize("teacher", TEACHERS)
def test_for_small_steps_the_teacher_says_what_it_predicts_itself(teacher):
    """Stage B's target tends to stage A's prediction."""
    net, target = unlike(flow_model()), SAMPLE["target"]
    movable = net.movable(target)
    plan = flow_criterion(teacher=teacher).plan(SAMPLE["id"], net)
    seen = corrupt(plan, target, movable, net.process)
    seen = seen._replace(steps=seen.steps._replace(t=seen.steps.t / 2, h=torch.full_like(seen.steps.h, 1e-6)))
    with torch.no_grad():
        found = net.combined(seen, SAMPLE["net_input"]["src_tokens"], target.ne(PAD), Places.of(movable), plan)
        assert torch.allclose(found[movable], predict(net, seen.x_t, *seen.steps)[movable], atol=1e-3)


def test_what_a_checkpoint_is_chosen_by_is_logged():
    loss = flow_criterion()
    with metrics.aggregate(new_root=True) as logged:
        loss.reduce_metrics([run(loss, flow_model())[2]])
    assert set(loss.measures) <= set(logged.get_smoothed_values())


@pytest.mark.parametrize("tilt", [float("nan"), float("inf"), -float("inf")])
def test_a_tilt_is_finite(tilt):
    with pytest.raises(FastDiSSError, match="--step-size-tilt must be a finite number"):
        flow_criterion(step_size_tilt=tilt)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_teacher_moves_words_alone_and_sees_half_steps(monkeypatch, temperature):
    net, target = unlike(flow_model(noise_source="uniform")), SAMPLE["target"]
    movable, looks = net.movable(target), []
    plan = flow_criterion(teacher_temperature=temperature).plan(SAMPLE["id"], net)
    seen = corrupt(plan, target, movable, net.process)
    seen = seen._replace(steps=seen.steps._replace(t=torch.zeros(8, 1), h=torch.ones(8, 1)))
    predict_as_before = net.predict
    monkeypatch.setattr(
        net, "predict", lambda x, t, h, *rest: looks.append((x, t, h)) or predict_as_before(x, t, h, *rest)
    )
    net.combined(seen, SAMPLE["net_input"]["src_tokens"], target.ne(PAD), Places.of(movable), plan)
    assert [(t[0].item(), h[0].item()) for _, t, h in looks] == [(0, 0.5), (0.5, 0.5), (0.5, 0.5), (1, 0.5)]
    for x, _, _ in looks:
        assert torch.equal(x[~movable], target[~movable]) and (x[movable] >= 3).all()
    assert not torch.equal(looks[0][0], looks[3][0])
    likeliest = net.logits(
        predict(net, looks[2][0], *(step[:1] for step in looks[2][1:]))[movable], net.table()
    ).argmax(-1)
    assert torch.equal(looks[3][0][movable], likeliest) == (temperature == 0)  # the last jump ends at the data


# Decoding


def generate(sources, net=NET, steps=None, **options):
    options.setdefault("decoding_steps", 3)
    options.setdefault("decoding_temperature", 1.0)
    options.setdefault("decoding_repeats", "keep")
    built = task().build_generator([net], Namespace(**options))
    return built.generate([net], batch(sources), decoding_steps=steps)


def words(hypotheses):
    return [[hypothesis["tokens"].tolist() for hypothesis in sentence] for sentence in hypotheses]


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("step_aware", [False, True])
def test_exactly_k_evaluations_that_are_told_the_step(steps, step_aware, monkeypatch):
    net, calls = flow_model(step_aware=step_aware), []
    used = net.deployed
    evaluate = used.predict
    monkeypatch.setattr(
        used, "predict", lambda x, t, h, *rest: calls.append((t.item(), h.item())) or evaluate(x, t, h, *rest)
    )
    found = generate(SOURCES, net, decoding_steps=steps, length_beam=2, noise_beam=2)
    told = 1 / steps if step_aware else SMALLEST
    assert calls == [pytest.approx((index / steps, told)) for index in range(steps)]
    assert {h["steps"] for sentence in found for h in sentence} == {steps}


def test_steps_belong_to_the_call():
    assert words(generate(SOURCES, steps=5)) == words(generate(SOURCES, decoding_steps=5))


every_way = pytest.mark.parametrize(
    "options",
    [
        *({"decoding_solver": rule} for rule in JUMPS),
        {"decoding_estimate": "drawn", "decoding_temperature": 0.7},
        {"decoding_temperature": 0.0},
        {"length_beam": 3, "noise_beam": 2},
        {"length_beam": 2, "noise_beam": 3, "decoding_choice": "mbr", "decoding_steps": 1},
    ],
    ids=str,
)


@every_way
@every_source
def test_alone_batched_and_reordered_decode_alike(options, source):
    net = unlike(flow_model(noise_source=source))
    together = words(generate(MANY, net, **options))
    assert [words(generate([one], net, **options))[0] for one in MANY[:20]] == together[:20]
    assert words(generate(MANY[::-1], net, **options)) == together[::-1]


@every_way
@every_source
def test_hypotheses_are_ordered_complete_and_well_formed(options, source):
    net = unlike(flow_model(noise_source=source))
    beam = options.get("length_beam", 1) * options.get("noise_beam", 1)
    for sentence in generate(MANY, net, retain_iter_history=True, **options):
        scores = [float(h["score"]) for h in sentence]
        assert len(sentence) == beam and scores == sorted(scores, reverse=True)
        for h in sentence:
            assert len(h["history"]) == options.get("decoding_steps", 3)
            assert torch.equal(h["history"][-1]["tokens"], h["tokens"])
            for step in h["history"]:
                tokens = step["tokens"].tolist()
                # the mask, <s>, is seen on the way where it is the source; padding and </s> never are
                seen = {PAD, EOS} if source == "mask" and step is not h["history"][-1] else {BOS, PAD, EOS}
                assert tokens[-1] == EOS and not seen & set(tokens[:-1])
            assert len(tokens) == len(h["positional_scores"]) and (h["positional_scores"] <= 0).all()


def test_noise_draws_words_alone():
    found = generate(MANY, flow_model(noise_source="uniform"), decoding_steps=200, retain_iter_history=True)
    first = [h["history"][0]["tokens"] for s in found for h in s]
    assert min(int(tokens[:-1].min()) for tokens in first if len(tokens) > 1) >= 3


def test_the_seed_and_the_way_change_the_output():
    plain = words(generate(MANY))
    assert words(generate(MANY)) == plain
    for options in ({"decoding_solver": "euler"}, {"decoding_estimate": "drawn"}, {"decoding_temperature": 0.0}):
        assert words(generate(MANY, **options)) != plain, options
    assert any(len(set(map(tuple, s))) > 1 for s in words(generate(MANY, noise_beam=3)))


def test_the_documented_defaults():
    found = task().build_generator([NET], Namespace()).decoding
    assert (found.sampler.solver, found.sampler.temperature, found.sampler.last) == ("cumulative", 0.0, "likeliest")
    assert (found.estimate, found.length_beam, found.noise_beam) == ("likeliest", 1, 1)
    assert task().build_generator([model()], Namespace()).decoding.sampler.temperature == 1.0


def test_an_empty_source_and_a_sentence_of_no_words():
    net = flow_model()
    with torch.no_grad():
        net.length.output.bias.fill_(-100.0)[8] = 100.0  # as long as the source
    assert words(generate([[EOS], [5, 6, EOS]], net))[0] == [[EOS]]
    assert words(generate([[EOS], [EOS]], net)) == [[[EOS]], [[EOS]]]
    total, tokens, _, _ = run(flow_criterion(), net.train(), [[5, EOS]], [[EOS]])
    assert torch.isfinite(total) and tokens == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoding_solver": "ddim"}, "unknown solver 'ddim'.*cumulative"),
        ({"decoding_estimate": "direct"}, "unknown last step 'direct'.*drawn"),
        ({"decoding_temperature": -1.0}, "temperature"),
        ({"early_exit": True}, "--early-exit is for FastDiSS"),
        ({"decoding_choice": "ar"}, "second --path"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(FastDiSSError, match=message):
        task().build_generator([NET], Namespace(**options))


def test_continuous_models_do_not_know_how_tokens_jump():
    with pytest.raises(FastDiSSError, match="unknown solver 'cumulative'.*renoise"):
        task().build_generator([model()], Namespace(decoding_solver="cumulative"))


def test_int8_linear_layers_reach_the_model_that_decodes():
    net = flow_model(step_aware=True)
    built = task(decoding_int8=True).build_generator([net], Namespace(decoding_steps=2))
    assert len(built.generate([net], batch(SOURCES))) == len(SOURCES)
    assert not any(isinstance(m, torch.nn.Linear) for m in net.teacher.denoiser.layers.modules())
