import gc
import multiprocessing
import sys
import time
import weakref
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from helpers import MINIATURE, batch, flow_model, model, model_config, sentences, task

from fastdiss_fairseq.diffusion.sampling import DECODING_SOLVERS
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.generation.candidates import last_positions
from fastdiss_fairseq.generation.config import TOLD_RATIO, resolve, without_effect
from fastdiss_fairseq.generation.continuous import read
from fastdiss_fairseq.generation.generator import FastDiSSGenerator
from fastdiss_fairseq.models.fastdiss import FastDiSSModel
from fastdiss_fairseq.modules import transformer
from fastdiss_fairseq.modules.places import Places
from fastdiss_fairseq.modules.rounding import Vocabulary

TASK, NET = task(), model()
BOS, PAD, EOS = 0, 1, 2
SOURCES = [source for source in sentences(20, seed=3) if source != [EOS]]
MANY = sentences(100, seed=4)  # some of them without a word


def decoding(request=None, net=NET, **task_options):
    return resolve(task(**task_options).cfg, request or GenerationConfig(), net.process, net.presets)


def generator(net=NET, **options):
    """A generator with options given as the request; repeats, of which untrained models are full, stay."""
    options.setdefault("decoding_steps", 3)
    options.setdefault("decoding_repeats", "keep")
    return task().build_generator([net], Namespace(**options))


def generate(sources, net=NET, steps=None, **options):
    return generator(net, **options).generate([net], batch(sources), decoding_steps=steps)


def deployed(net, **options):
    """What a model says that is changed for decoding."""
    request = Namespace(decoding_steps=2, decoding_repeats="keep")
    return task(**options).build_generator([net], request).generate([net], batch(SOURCES))


def words(hypotheses):
    return [[hypothesis["tokens"].tolist() for hypothesis in sentence] for sentence in hypotheses]


# Options


def test_stock_request_and_stock_task_give_the_documented_defaults():
    found = decoding()
    assert found.steps == GenerationConfig().iter_decode_max_iter + 1
    assert (found.length_beam, found.noise_beam, found.choice) == (1, 1, "score")
    assert (found.sampler.solver, found.sampler.self_conditioning) == ("mask_predict", "previous")
    factor = NET.process.noise_factor
    assert (found.sampler.noise_factor, found.sampler.told_noise_factor) == (factor, TOLD_RATIO * factor)
    assert found.sampler.trained == NET.process
    assert (found.early_exit, found.history, found.seed) == (False, False, 1)
    assert (found.repeats, found.length_factor) == ("merge", 1.0)


def trained(**options):
    """A model as built from a checkpoint's configuration, with options of the criterion."""
    cfg = OmegaConf.create({"model": vars(model_config(**MINIATURE)), "criterion": options})
    return FastDiSSModel.build_model(cfg.model, TASK)


def test_a_model_of_one_time_for_all_tokens_is_decoded_by_a_solver_for_it():
    one_time = trained(mixed_times=0.0)
    assert decoding(net=one_time).sampler.solver == "renoise"
    assert decoding(net=one_time, decoding_solver="ddim").sampler.solver == "ddim"
    assert decoding(net=trained(mixed_times=0.5)).sampler.solver == "mask_predict"


def test_a_model_that_never_met_an_estimate_is_given_none():
    without = trained(self_conditioning_prob=0.0)
    assert decoding(net=without).sampler.self_conditioning == "none"
    assert decoding(net=without, decoding_self_conditioning="previous").sampler.self_conditioning == "previous"
    assert decoding(net=trained(self_conditioning_prob=0.5)).sampler.self_conditioning == "previous"


@pytest.mark.parametrize("request_type", [GenerationConfig, Namespace])
def test_fairseqs_flags_count_where_ours_are_not_given(request_type):
    request = request_type(iter_decode_max_iter=4, iter_decode_with_beam=3, retain_iter_history=True)
    found = decoding(request)
    assert (found.steps, found.length_beam, found.history) == (5, 3, True)


@pytest.mark.parametrize("request_type", [GenerationConfig, Namespace])
def test_the_tasks_options_go_before_fairseqs_flags(request_type):
    request = request_type(iter_decode_max_iter=4, iter_decode_with_beam=3)
    found = decoding(request, decoding_steps=7, length_beam=2)
    assert (found.steps, found.length_beam) == (7, 2)


def test_the_requests_options_go_before_the_tasks():
    request = Namespace(
        decoding_steps=2, length_beam=5, noise_beam=4, decoding_solver="ddim", decoding_choice="mbr",
        decoding_noise_factor=3.0, decoding_told_noise_factor=2.5, decoding_temperature=0.5,
        decoding_self_conditioning="none", early_exit=True,
    )  # fmt: skip
    found = decoding(
        request, decoding_steps=7, length_beam=2, noise_beam=2, decoding_solver="ddpm", decoding_temperature=0.1
    )
    assert (found.steps, found.length_beam, found.noise_beam, found.choice) == (2, 5, 4, "mbr")
    assert (found.sampler.solver, found.sampler.self_conditioning) == ("ddim", "none")
    assert (found.sampler.noise_factor, found.sampler.told_noise_factor) == (3.0, 2.5)
    assert found.sampler.temperature == 0.5 and found.early_exit


def test_the_tasks_options_hold_where_the_request_is_silent():
    found = decoding(Namespace(decoding_steps=2), decoding_solver="dpmpp_2m", noise_beam=3, early_exit=True)
    assert (found.steps, found.sampler.solver, found.noise_beam, found.early_exit) == (2, "dpmpp_2m", 3, True)


def test_no_decoding_noise_factor_means_the_trained_one():
    assert decoding(decoding_noise_factor=None).sampler.noise_factor == NET.process.noise_factor


@pytest.mark.parametrize("request_type", [GenerationConfig, Namespace])
def test_force_max_iter_switches_early_exit_off(request_type):
    assert decoding(early_exit=True).early_exit
    assert not decoding(request_type(iter_decode_force_max_iter=True), early_exit=True).early_exit


def test_external_reranker_flag_chooses_the_autoregressive_choice():
    assert decoding(GenerationConfig(iter_decode_with_external_reranker=True)).choice == "ar"
    assert decoding(decoding_choice="ar").choice == "ar"


def test_unknown_options_of_a_namespace_are_named():
    with pytest.raises(FastDiSSError, match="beem, decoding_step$"):
        decoding(Namespace(decoding_step=3, beem=2, beam=5))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoding_steps": 0}, "--decoding-steps .* at least 1, not 0"),
        ({"decoding_steps": -3}, "--decoding-steps"),
        ({"decoding_steps": 2.5}, "--decoding-steps .* whole number"),
        ({"decoding_steps": True}, "--decoding-steps"),
        ({"iter_decode_max_iter": -1}, "--decoding-steps"),
        ({"length_beam": 0}, "--length-beam"),
        ({"iter_decode_with_beam": 0}, "--length-beam"),
        ({"noise_beam": 0}, "--noise-beam"),
        ({"decoding_solver": "euler"}, "unknown solver 'euler'.*renoise"),
        ({"decoding_self_conditioning": "twice"}, "unknown self-conditioning"),
        ({"decoding_choice": "best"}, "unknown choice 'best'.*mbr"),
        ({"decoding_estimate": "best"}, "unknown estimate 'best'.*expected"),
        ({"decoding_repeats": "drop"}, "unknown treatment of repeats 'drop'.*merge, keep"),
        ({"decoding_length_factor": 0.0}, "--decoding-length-factor must be a number above 0"),
        ({"decoding_length_factor": float("nan")}, "--decoding-length-factor"),
        ({"decoding_length_factor": None}, "decoding_length_factor must be a number"),
        ({"decoding_noise_factor": 0.0}, "positive"),
        ({"decoding_temperature": -1.0}, "temperature"),
        ({"decoding_choice": "ar"}, "second --path"),
        ({"score_reference": True}, "--score-reference"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(FastDiSSError, match=message):
        task().build_generator([NET], Namespace(**options))


@pytest.mark.parametrize(
    "models, choice, message",
    [
        ([torch.nn.Linear(1, 1)], "score", "holds a Linear, not a FastDiSS model"),
        ([NET, NET], "score", "one model"),
        ([NET, NET], "ar", "autoregressive"),
        ([NET, NET, NET], "ar", "autoregressive"),
    ],
)
def test_models_that_do_not_fit(models, choice, message):
    with pytest.raises(FastDiSSError, match=message):
        task().build_generator(models, Namespace(decoding_choice=choice))


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_steps_of_a_call_are_checked(steps):
    with pytest.raises(FastDiSSError, match="decoding_steps must be a whole number"):
        generate(SOURCES[:1], steps=steps)


@pytest.mark.parametrize("autocast", ["none", "bf16"])
def test_int8_linear_layers_change_little(autocast):
    net = model(seed=3, autocast=autocast)
    exact = generate(SOURCES, net=net, decoding_steps=2)
    found = deployed(net, decoding_int8=True)
    assert not any(isinstance(m, torch.nn.Linear) for m in net.denoiser.layers.modules())
    scores = [[float(s[0]["score"]) for s in hypotheses] for hypotheses in (exact, found)]
    assert scores[0] != scores[1]
    alike = sum(abs(a - b) < 0.1 for a, b in zip(*scores))
    assert alike >= len(exact) - 2  # a close decision about a length may turn


def test_bfloat16_weights_change_little():
    net = model(seed=3)
    exact = generate(SOURCES, net=model(seed=3), decoding_steps=2)
    found = deployed(net, decoding_bf16=True)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    scores = [[float(s[0]["score"]) for s in hypotheses] for hypotheses in (exact, found)]
    assert scores[0] != scores[1]
    alike = sum(abs(a - b) < 0.1 for a, b in zip(*scores))
    assert alike >= len(exact) - 2  # a close decision about a length may turn


@pytest.mark.parametrize("others", [{}, {"decoding_bf16": True, "decoding_compile": True}], ids=str)
def test_a_changed_model_is_for_what_it_was_changed_for(others):
    net = model(seed=3)
    deployed(net, decoding_bf16=True)
    with pytest.raises(FastDiSSError, match="changed by --decoding-bf16.* load it anew"):
        deployed(net, **others)
    assert words(deployed(net, decoding_bf16=True)) == words(deployed(model(seed=3), decoding_bf16=True))


@pytest.mark.slow
@pytest.mark.torch_2
def test_a_compiled_network_says_the_same():
    """For batches of several sizes, with padding and without, and again in the next generator."""
    net = model(seed=3)
    for sources in (SOURCES, SOURCES[:1], SOURCES[2:5]):
        exact = generate(sources, net=model(seed=3), decoding_steps=3, length_beam=2)
        request = Namespace(decoding_steps=3, length_beam=2, decoding_repeats="keep")
        built = task(decoding_compile=True).build_generator([net], request)
        for ours, theirs in zip(built.generate([net], batch(sources)), exact):
            for one, other in zip(ours, theirs):
                assert one["tokens"].tolist() == other["tokens"].tolist()
                assert torch.allclose(one["positional_scores"], other["positional_scores"], atol=1e-4)
    assert "_orig_mod" not in "".join(net.state_dict())


def test_candidates_share_the_keys_and_values_of_their_source(monkeypatch):
    """Ten candidates of a sentence look, in all steps, at one row of keys, which was projected once."""
    seen = []

    def watched(queries, keys, values, **options):
        seen.append((len(keys), keys, values))  # kept, so that no other takes their place
        return F.scaled_dot_product_attention(queries, keys, values, **options)

    monkeypatch.setattr(transformer, "scaled_dot_product_attention", watched)
    generate(SOURCES, decoding_steps=3, length_beam=5, noise_beam=2)
    ours = [[part.data_ptr() for part in parts] for rows, *parts in seen if rows == len(SOURCES)]
    denoiser, layers = ours[NET.cfg.encoder_layers :], NET.cfg.decoder_layers
    assert len(denoiser) == 3 * layers and denoiser == 3 * denoiser[:layers]
    assert {rows for rows, *_ in seen} == {len(SOURCES), 10 * len(SOURCES)}


@pytest.mark.parametrize("options", [{}, {"length_beam": 3, "early_exit": True}, {"decoding_solver": "ddim"}], ids=str)
def test_large_batches_are_decoded_in_pieces(options, monkeypatch):
    calls, denoise = [], NET.denoiser.forward
    monkeypatch.setattr(NET.denoiser, "forward", lambda *inputs: calls.append(1) or denoise(*inputs))
    at_once, number = generate(MANY, **options), len(calls)
    monkeypatch.setattr("fastdiss_fairseq.generation.stages.POSITIONS_AT_ONCE", 100)
    pieces = generate(MANY, **options)
    assert words(pieces) == words(at_once) and len(calls) > 5 * number
    assert [[h["steps"] for h in sentence] for sentence in pieces] == [[h["steps"] for h in s] for s in at_once]
    history = generate(MANY, retain_iter_history=True, **options)
    assert words(history) == words(at_once)


def test_what_changes_the_model_is_no_option_of_a_request():
    with pytest.raises(FastDiSSError, match="decoding_int8 changes the model, so it is an option of"):
        task().build_generator([NET], Namespace(decoding_int8=True))
    with pytest.raises(FastDiSSError, match="--decoding-int8 excludes --decoding-compile"):
        task(decoding_int8=True, decoding_compile=True).build_generator([NET], Namespace())


def test_int8_is_refused_in_half_precision():
    with pytest.raises(FastDiSSError, match="needs a CPU and float32"):
        deployed(model().half(), decoding_int8=True)


def test_int8_is_refused_in_training():
    with pytest.raises(FastDiSSError, match="not for training"):
        task(decoding_int8=True).build_model(NET.cfg)


def test_prefixes_and_constraints_are_refused():
    for refused in ({"prefix_tokens": torch.tensor([[5]])}, {"constraints": torch.tensor([[1]])}):
        with pytest.raises(FastDiSSError, match="--prefix-size and --constraints"):
            generator().generate([NET], batch(SOURCES[:1]), **refused)


# Decoding


def count_evaluations(net, monkeypatch):
    calls = []
    denoise, encode = net.denoise, net.encode
    monkeypatch.setattr(net, "denoise", lambda *args: calls.append("denoise") or denoise(*args))
    monkeypatch.setattr(net, "encode", lambda *args: calls.append("encode") or encode(*args))
    return calls


every_solver = pytest.mark.parametrize("solver", DECODING_SOLVERS)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("self_conditioning, each", [("previous", 1), ("none", 1), ("recompute", 2)])
@every_solver
def test_exactly_k_evaluations_of_the_network_and_one_of_the_encoder(
    solver, steps, self_conditioning, each, monkeypatch
):
    calls = count_evaluations(NET, monkeypatch)
    options = dict(decoding_solver=solver, decoding_self_conditioning=self_conditioning, length_beam=2, noise_beam=2)
    hypotheses = generate(SOURCES[:4], decoding_steps=steps, **options)
    assert calls == ["encode"] + ["denoise"] * steps * each
    assert {h["steps"] for sentence in hypotheses for h in sentence} == {steps * each}


def test_steps_belong_to_the_call(monkeypatch):
    calls = count_evaluations(NET, monkeypatch)
    built = generator(decoding_steps=4)
    for steps, expected in ((2, 2), (None, 4), (7, 7), (None, 4)):
        calls.clear()
        found = built.generate([NET], batch(SOURCES[:2]), decoding_steps=steps)
        assert calls.count("denoise") == expected == found[0][0]["steps"]
    assert words(built.generate([NET], batch(SOURCES), decoding_steps=2)) == words(generate(SOURCES, decoding_steps=2))


def test_sources_are_cut_to_what_the_command_asks_for():
    """As fairseq-interactive cuts them, whatever the model could read."""
    built, long = generator(), [[*range(5, 15), EOS], [6, 7, EOS]]
    scores = lambda hypotheses: [sentence[0]["score"].item() for sentence in hypotheses]
    cut = pytest.approx(scores(task(max_source_positions=4).inference_step(built, [NET], batch(long))), abs=1e-5)
    assert scores(generate([[5, 6, 7, 8], [6, 7, EOS]])) == cut and scores(generate(long)) != cut


def test_through_the_tasks_inference_step():
    built = generator(noise_beam=2)
    assert words(task().inference_step(built, [NET], batch(SOURCES))) == words(generate(SOURCES, noise_beam=2))


def test_the_target_is_not_read():
    with_target = generator().generate([NET], batch(SOURCES, sentences(20, seed=4)))
    assert words(with_target) == words(generate(SOURCES))


every_way = pytest.mark.parametrize(
    "options",
    [
        {"decoding_solver": "renoise"},
        {"decoding_solver": "ddim", "decoding_self_conditioning": "none"},
        {"decoding_solver": "ddpm", "decoding_self_conditioning": "recompute"},
        {"decoding_solver": "dpmpp_2m", "decoding_told_noise_factor": 2.0},
        {"decoding_estimate": "expected"},
        {"decoding_solver": "mask_predict"},
        {"decoding_solver": "mask_predict", "decoding_self_conditioning": "recompute", "decoding_temperature": 0.5},
        {"decoding_solver": "mask_predict", "length_beam": 2, "noise_beam": 2, "early_exit": True},
        {"decoding_estimate": "rounded", "decoding_self_conditioning": "recompute"},
        {"length_beam": 3, "noise_beam": 2},
        {"length_beam": 2, "noise_beam": 3, "decoding_choice": "mbr", "early_exit": True},
    ],
    ids=str,
)


@every_way
def test_alone_batched_and_reordered_decode_alike(options):
    together = words(generate(MANY, **options))
    assert [words(generate([source], **options))[0] for source in MANY] == together
    order = torch.randperm(len(MANY), generator=torch.Generator().manual_seed(5)).tolist()
    assert words(generate([MANY[i] for i in order], **options)) == [together[i] for i in order]
    halves = words(generate(MANY[:7], **options)) + words(generate(MANY[7:], **options))
    assert halves == together


def test_padding_of_the_source_does_not_matter():
    sample = batch(SOURCES)
    wide = {"net_input": {"src_tokens": torch.nn.functional.pad(sample["net_input"]["src_tokens"], (0, 9), value=PAD)}}
    assert words(generator().generate([NET], wide)) == words(generate(SOURCES))


@every_way
def test_hypotheses_are_ordered_complete_and_well_formed(options):
    beam = options.get("length_beam", 1) * options.get("noise_beam", 1)
    for sentence in generate(SOURCES, **options):
        scores = [float(h["score"]) for h in sentence]
        assert len(sentence) == beam and scores == sorted(scores, reverse=True)
        for h in sentence:
            tokens = h["tokens"].tolist()
            assert tokens[-1] == EOS and not {BOS, PAD, EOS} & set(tokens[:-1])
            assert len(tokens) == len(h["positional_scores"])
            assert (h["positional_scores"] <= 0).all() and torch.isfinite(h["score"])
            assert h["attention"] is None and h["alignment"] is None and "history" not in h


def test_score_is_the_log_probability_per_token_of_the_tokens_and_their_number():
    source = NET.encode(batch(SOURCES)["net_input"]["src_tokens"])
    of_lengths = source.length_logits.log_softmax(-1)
    for number, sentence in enumerate(generate(SOURCES, length_beam=3)):
        for h in sentence:
            tokens = len(h["tokens"])
            offset = tokens - int(source.lengths[number]) + NET.length.max_offset
            expected = (h["positional_scores"].sum() + of_lengths[number, offset]) / tokens
            assert h["score"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_unlikely_length_is_not_chosen_for_being_short():
    """The fewer tokens there are, the easier each is; the length predictor has its say."""
    net = model()
    with torch.no_grad():
        net.length.output.weight.zero_()
        net.length.output.bias.copy_(
            -10.0 * torch.arange(2.0 * net.length.max_offset + 1).sub(net.length.max_offset).abs()
        )
    for source, (best, *_) in zip(SOURCES, generate(SOURCES, net=net, length_beam=5)):
        assert len(best["tokens"]) == int(batch([source])["net_input"]["src_tokens"].ne(PAD).sum())


def test_positional_scores_have_storage_of_their_own():
    """fairseq-generate divides them in place."""
    first, second = generate(SOURCES[:1], length_beam=2)[0]
    before = second["positional_scores"].clone()
    first["positional_scores"].div_(0.5)
    assert torch.equal(second["positional_scores"], before)
    assert first["positional_scores"].is_contiguous()
    scores = first["positional_scores"]
    assert getattr(scores, "untyped_storage", scores.storage)().nbytes() == 4 * len(first["tokens"])


def test_candidates_cover_the_likeliest_lengths_with_each_seed():
    source = NET.encode(batch(SOURCES)["net_input"]["src_tokens"])
    lengths = NET.length.top(source.length_logits, source.lengths, 3, 64)[0].tolist()
    for sentence, expected in zip(generate(SOURCES, length_beam=3, noise_beam=2), lengths):
        assert sorted(len(h["tokens"]) for h in sentence) == sorted(expected * 2)


def test_every_length_is_decoded_with_every_seed():
    """Another length or seed leaves the candidates as they are."""
    truth = {"decoding_solver": "renoise", "decoding_told_noise_factor": NET.process.noise_factor}
    many = words(generate(SOURCES, length_beam=2, noise_beam=3, **truth))
    for options in ({"noise_beam": 3}, {"length_beam": 2}, {"noise_beam": 2}):
        for few, several in zip(words(generate(SOURCES, **options, **truth)), many):
            assert all(candidate in several for candidate in few)
    for several in many:
        longest = max(map(len, several))
        assert sum(len(candidate) == longest for candidate in several) in (3, 6)
    assert any(len(set(map(tuple, several))) == 6 for several in many)


def test_the_first_seed_is_the_only_seed_of_a_smaller_beam():
    one = words(generate(SOURCES))
    three = words(generate(SOURCES, noise_beam=3))
    assert all(single[0] in several for single, several in zip(one, three))
    assert any(len(set(map(tuple, several))) > 1 for several in three)


def test_another_seed_is_other_noise_and_the_same_seed_the_same():
    runs = []
    for seed in (1, 1, 2):
        built = FastDiSSGenerator(TASK.target_dictionary, replace(generator().decoding, seed=seed))
        runs.append(words(built.generate([NET], batch(SOURCES))))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("choice", ["score", "mbr"])
def test_merged_repeats_are_those_of_the_same_candidates(choice):
    beams = dict(length_beam=3, retain_iter_history=True, decoding_choice=choice)
    kept, merged = generate(SOURCES, **beams), generate(SOURCES, decoding_repeats="merge", **beams)
    special = TASK.target_dictionary.nspecial
    once = lambda tokens: [t for i, t in enumerate(tokens) if not i or t < special or t != tokens[i - 1]]
    raw = [sorted(map(once, sentence)) for sentence in words(kept)]
    assert raw == [sorted(sentence) for sentence in words(merged)]
    assert raw != [sorted(sentence) for sentence in words(kept)], "nothing was repeated"
    for sentence in merged:
        for h in sentence:
            assert h["tokens"].tolist() == once(h["history"][-1]["tokens"].tolist())
            assert len(h["tokens"]) == len(h["positional_scores"])
            if choice == "score":
                assert float(h["score"]) <= float(h["positional_scores"].mean())


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.5, 100.0])
def test_the_length_factor_multiplies_lengths_within_their_limits(factor):
    longest = NET.cfg.max_target_positions
    plain, changed = (words(generate(SOURCES, decoding_length_factor=f)) for f in (1.0, factor))
    for (before,), (after,) in zip(plain, changed):
        assert len(after) == min(max(round(len(before) * factor), 1), longest)


@pytest.mark.parametrize("steps", [1, 4])
@every_solver
def test_history_holds_every_step_and_ends_in_the_result(steps, solver):
    options = dict(decoding_solver=solver, retain_iter_history=True, length_beam=2)
    for sentence in generate(SOURCES, decoding_steps=steps, **options):
        for h in sentence:
            assert len(h["history"]) == steps
            assert all(step["tokens"].shape == h["tokens"].shape for step in h["history"])
            assert torch.equal(h["history"][-1]["tokens"], h["tokens"])
            assert torch.allclose(h["history"][-1]["positional_scores"], h["positional_scores"], atol=1e-5)


def test_history_changes_nothing():
    assert words(generate(SOURCES, retain_iter_history=True)) == words(generate(SOURCES))


def test_early_exit_reports_the_steps_of_each_sentence():
    """The steps reported are those after which the history of a full run first stands still."""
    full = generate(SOURCES, decoding_steps=12, retain_iter_history=True, decoding_solver="ddim")
    early = generate(SOURCES, decoding_steps=12, early_exit=True, decoding_solver="ddim")
    stopped = 0
    for a, b in zip(full, early):
        history = [step["tokens"].tolist() for step in a[0]["history"]]
        expected = next((i + 2 for i, (x, y) in enumerate(zip(history, history[1:])) if x == y), 12)
        assert b[0]["steps"] == expected
        assert b[0]["tokens"].tolist() == history[expected - 1]
        stopped += expected < 12
    assert 0 < stopped


@pytest.mark.parametrize("solver", ["mask_predict", "ddim"])
def test_early_exit_is_each_sentences_own(solver):
    options = dict(decoding_steps=30, early_exit=True, decoding_solver=solver, retain_iter_history=True)
    together = generate(SOURCES, **options)
    assert min(sentence[0]["steps"] for sentence in together) < 30
    for source, sentence in zip(SOURCES, together):
        alone = generate([source], **options)[0][0]
        assert alone["steps"] == sentence[0]["steps"] and torch.equal(alone["tokens"], sentence[0]["tokens"])
        assert len(sentence[0]["history"]) == sentence[0]["steps"]


@pytest.mark.parametrize("steps", [1, 3])
def test_empty_and_single_sentences(steps):
    for sources in ([[EOS]], [[EOS], [EOS]], [[5, EOS]]):
        hypotheses = generate(sources, decoding_steps=steps, length_beam=3, retain_iter_history=True)
        assert len(hypotheses) == len(sources) and all(len(sentence) == 3 for sentence in hypotheses)
        assert all(h["tokens"][-1] == EOS and torch.isfinite(h["score"]) for s in hypotheses for h in s)
        blank = [sentence for source, sentence in zip(sources, hypotheses) if source == [EOS]]
        assert all(step["tokens"].tolist() == [EOS] for s in blank for h in s for step in [h, *h["history"]])


@pytest.mark.parametrize("choice", ["score", "mbr"])
def test_a_hypothesis_of_the_end_alone(choice):
    """A predicted length of 1 leaves no position to round."""
    net = model()
    net.length.output.weight.data.zero_()
    net.length.output.bias.data.copy_(-torch.arange(17.0))
    sentence = generate([[5, EOS]], net, decoding_choice=choice, early_exit=True, retain_iter_history=True)[0]
    assert [h["tokens"].tolist() for h in sentence] == [[EOS]]
    mixed = words(generate([[5, EOS], [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, EOS]], net, decoding_choice=choice, length_beam=2))
    assert [EOS] in mixed[0] and sorted(map(len, mixed[1])) == [3, 4]


def test_over_long_sources_are_cut():
    hypotheses = generate([[5] * 200 + [EOS], [6, EOS]], length_beam=3)
    assert all(1 <= len(h["tokens"]) <= 64 for sentence in hypotheses for h in sentence)


def test_generating_leaves_training_mode():
    net = model(dropout=0.5).train()
    built = generator(net)
    first = words(built.generate([net], batch(SOURCES)))
    assert not net.training and words(built.generate([net], batch(SOURCES))) == first


@pytest.mark.skipif(not hasattr(TorchDispatchMode, "__enter__"), reason="needs a torch that shows its operators")
def test_autocast_casts_weights_once_a_batch():
    net = model(autocast="bf16")
    weights = {p.data_ptr() for p in net.parameters()}

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            self.count += operator is torch.ops.aten._to_copy.default and args[0].data_ptr() in weights
            return operator(*args, **(kwargs or {}))

    def casts(steps):
        built = generator(net, decoding_steps=steps)
        with Casts() as counted:
            built.generate([net], batch(SOURCES))
        return counted.count

    assert 0 < casts(2) == casts(6)


@pytest.mark.parametrize("solver", ["mask_predict", "ddim"])
def test_hypotheses_can_be_written_to_and_the_model_trained_on(solver):
    """Decoding is in inference mode, whose tensors can be neither written to nor differentiated elsewhere."""
    net = model()
    for (best,) in generate(SOURCES, net, decoding_solver=solver):
        best["positional_scores"].div_(2), best["tokens"].add_(1), best["score"].mul_(2)
    source = net.encode(batch(SOURCES)["net_input"]["src_tokens"])
    (source.length_logits.sum() + net.table()[:9].pow(3).sum()).backward()
    assert net.embedding.weight.grad.any() and net.length.output.weight.grad.any()


def test_rounding_takes_the_nearest_word_and_the_softmax_without_special_tokens():
    built = generator()
    estimate = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(6))
    mask = torch.arange(5) < torch.tensor([[5, 3, 1], [2, 4, 5]]).unsqueeze(-1)
    with torch.no_grad():
        vocabulary = Vocabulary.of(NET.table(), built.special)
        last = last_positions(mask)
        tokens, log_probs, _ = read(NET, vocabulary, estimate, last, Places.of(mask), "direct", built.special)
        table = NET.embedding(torch.arange(40))
    for i in range(2):
        for j in range(3):
            length = int(mask[i, j].sum())
            assert tokens[i, j, length - 1] == EOS and (tokens[i, j, length:] == PAD).all()
            assert not log_probs[i, j, length - 1 :].any()
            for k in range(length - 1):
                logits = table[[3, *range(4, 40)]] @ estimate[i, j, k]
                assert tokens[i, j, k] == 3 + logits.argmax()
                assert log_probs[i, j, k].item() == pytest.approx(logits.log_softmax(0).max().item(), rel=1e-4)


@pytest.mark.parametrize("solver", DECODING_SOLVERS)
def test_rounded_estimates_are_what_is_read(solver, monkeypatch):
    """<s>, padding and an early end of sentence, which are never read, are no estimates either."""
    net, conditions = model(), []
    plain = net.denoise
    monkeypatch.setattr(
        net, "denoise", lambda z, told, z_bar, *a: conditions.append(z_bar) or plain(z, told, z_bar, *a)
    )
    options = dict(decoding_solver=solver, decoding_estimate="rounded", decoding_steps=4, retain_iter_history=True)
    hypotheses = generate(SOURCES, net, **options)
    with torch.no_grad():
        nearest = [(z_bar @ net.embedding(torch.arange(40)).T).argmax(-1).tolist() for z_bar in conditions[1:]]
    for i, (hypothesis,) in enumerate(hypotheses):
        for step, given in zip(hypothesis["history"], nearest):
            assert given[i][: len(step["tokens"])] == step["tokens"].tolist()


def test_rounding_in_pieces_changes_nothing(monkeypatch):
    whole = generate(SOURCES, length_beam=2)
    monkeypatch.setattr("fastdiss_fairseq.modules.rounding.AT_ONCE", {"cpu": 3})
    assert words(generate(SOURCES, length_beam=2)) == words(whole)


def test_mbr_orders_by_utility_in_logarithms():
    from fastdiss_fairseq.generation.choice import mbr

    built = generator(decoding_choice="mbr", length_beam=2, noise_beam=3)
    with torch.no_grad():
        found = built.decode(NET, batch(SOURCES)["net_input"]["src_tokens"], built.decoding)
    expected = mbr(found.tokens, found.mask, [EOS]).clamp(min=1e-9).log().sort(dim=1, descending=True)[0]
    scores = [[float(h["score"]) for h in s] for s in built.generate([NET], batch(SOURCES))]
    assert torch.allclose(torch.tensor(scores).double(), expected.double(), atol=1e-5)


def test_one_candidate_has_its_log_probability_with_mbr_too():
    scores = [[[float(h["score"]) for h in s] for s in generate(SOURCES, decoding_choice=c)] for c in ("mbr", "score")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, []),
        ({"iter_decode_max_iter": 4, "sacrebleu": True}, []),
        ({"beam": 1, "lenpen": 0.5}, ["beam", "lenpen"]),
        ({"nbest": 3}, []),
        ({"retain_dropout": True}, []),
        ({"iter_decode_with_external_reranker": True}, ["decoding_choice"]),
        ({"iter_decode_with_external_reranker": True, "iter_decode_with_beam": 2}, []),
    ],
    ids=str,
)
def test_options_without_effect_are_named(options, expected):
    request = GenerationConfig(**options)
    assert without_effect(task().cfg, request, decoding(request)) == expected


def test_no_more_lengths_than_are_predicted():
    built, most = task(), 2 * NET.cfg.max_length_offset + 1
    assert len(generate(SOURCES[:2], length_beam=most)[0]) == most
    with pytest.raises(
        FastDiSSError, match=f"{most + 1} candidate lengths .--length-beam., but the model predicts one of {most}"
    ):
        built.build_generator([NET], Namespace(length_beam=most + 1))


def test_hypotheses_that_there_are_not_are_remarked_on(caplog):
    built = task()
    for beam in (2, 3):
        built.build_generator([NET], Namespace(nbest=3, length_beam=beam))
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == "--nbest 3, but --length-beam and --noise-beam make 2 of each sentence"


def test_noise_factors_have_no_effect_on_mask_predict():
    request = Namespace(decoding_noise_factor=2.0, decoding_temperature=0.5, nbest=6, length_beam=3, noise_beam=2)
    expected = ["decoding_noise_factor", "decoding_temperature", "noise_beam"]
    assert without_effect(task().cfg, request, decoding(request)) == expected
    request.decoding_solver = "ddim"
    assert without_effect(task().cfg, request, decoding(request)) == []


def test_what_fsdfm_does_not_read_is_named():
    net = flow_model()
    request = Namespace(decoding_noise_factor=2.0, decoding_self_conditioning="none", decoding_temperature=0.5)
    expected = ["decoding_noise_factor", "decoding_self_conditioning"]
    assert without_effect(task().cfg, request, decoding(request, net)) == expected


def test_the_training_set_is_decoded_like_any_other():
    """Complete, and in shards; fairseq's limits of length are for training on it."""
    built = task(num_shards=2, shard_id=1)
    dataset = built.build_dataset_for_inference([torch.tensor(source) for source in SOURCES], list(map(len, SOURCES)))
    built.datasets["train"] = dataset
    indices = dataset.ordered_indices()
    assert built.filter_indices_by_size(indices, dataset, (3, 3), True).tolist() == indices[1::2].tolist()
    built.trained = type(NET)
    kept = built.filter_indices_by_size(indices, dataset, (3, 3), True)
    assert 0 < len(kept) < len(SOURCES) and all(len(SOURCES[i]) <= 3 for i in kept)


def test_what_is_cut_is_counted(caplog):
    """In fairseq-interactive and, when a split is loaded, in fairseq-generate; the whole is what remains otherwise."""
    built = task(max_source_positions=4)
    dataset = built.build_dataset_for_inference([torch.tensor(source) for source in SOURCES], list(map(len, SOURCES)))
    long = sum(len(source) > 4 for source in SOURCES)
    assert 0 < long < len(SOURCES)
    whole = task().build_dataset_for_inference([torch.tensor(source) for source in SOURCES], list(map(len, SOURCES)))
    built._count_what_is_read(whole)
    expected = f"cut to --max-source-positions, 4 tokens: {long} of {len(SOURCES)} sentences"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [expected] * 2
    assert max(dataset.src_sizes) == max(whole.src_sizes) == 4


def test_what_passes_by_is_not_kept():
    """fairseq-interactive makes a dataset of each buffer of lines, for hours."""
    built = task()
    kept = []
    for _ in range(3):
        dataset = built.build_dataset_for_inference([torch.tensor([5, 6, 2])], [3])
        batches = built.get_batch_iterator(dataset, max_tokens=100).next_epoch_itr(shuffle=False)
        assert len(list(batches)) == 1
        kept.append(weakref.ref(dataset))
        del dataset, batches
    gc.collect()
    assert [reference() for reference in kept] == [None] * 3


@pytest.mark.parametrize("split", ["train", "valid"])
def test_workers_end_with_their_epoch(split):
    built = task()
    dataset = built.build_dataset_for_inference([torch.tensor(source) for source in SOURCES], list(map(len, SOURCES)))
    built.datasets[split], built.trained = dataset, type(NET)
    for epoch in (1, 2, 3):
        iterator = built.get_batch_iterator(dataset, max_tokens=20, num_workers=1, data_buffer_size=2, epoch=epoch)
        assert sum(len(one["id"]) for one in iterator.next_epoch_itr()) == len(SOURCES)
        deadline = time.monotonic() + 4  # the five seconds are what is not to be waited for
        while multiprocessing.active_children() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not multiprocessing.active_children()


def test_an_over_long_sentence_leaves_the_others_batches_as_they_are():
    built = task()
    dataset = built.build_dataset_for_inference([torch.tensor(source) for source in SOURCES], list(map(len, SOURCES)))
    built.datasets["valid"] = dataset
    dataset.src_sizes[3] = 5000  # as if the file had such a sentence
    built._count_what_is_read(dataset)
    batches = list(built.get_batch_iterator(dataset, max_tokens=50).next_epoch_itr(shuffle=False))
    assert sum(len(one["id"]) for one in batches) == len(dataset)
    assert all(len(one["id"]) * int(dataset.src_sizes[one["id"]].max()) <= 64 for one in batches)


@pytest.mark.parametrize(
    "options",
    [{}, {"length_beam": 2, "noise_beam": 2}, {"decoding_solver": "ddim"}, {"early_exit": True}, {"share": True}],
    ids=str,
)
def test_onnx_runtime_says_the_same(options):
    """For batches of several sizes, with padding and without, a single token, and more positions than one piece."""
    pytest.importorskip("onnxruntime")
    options = dict(options)
    shared = {"share_all_embeddings": options.pop("share", False)}
    exact, net = model(seed=3, **shared), model(seed=3, **shared)
    request = Namespace(decoding_steps=4, decoding_repeats="keep", **options)
    built = task(decoding_onnx=True).build_generator([net], request)
    for sources in (SOURCES, SOURCES[:1], [[5]], SOURCES * 3):
        found = built.generate([net], batch(sources))
        for ours, theirs in zip(found, generate(sources, net=exact, decoding_steps=4, **options)):
            for one, other in zip(ours, theirs):
                assert one["tokens"].tolist() == other["tokens"].tolist()
                assert torch.allclose(one["positional_scores"], other["positional_scores"], atol=1e-4)


def test_onnx_runtime_refuses_what_it_cannot_do(monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(FastDiSSError, match="needs a CPU and float32"):
        deployed(model().half(), decoding_onnx=True)
    with pytest.raises(FastDiSSError, match="--decoding-onnx excludes --decoding-bf16"):
        task(decoding_onnx=True, decoding_bf16=True).build_generator([NET], Namespace())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FastDiSSError, match="pip install onnx onnxruntime"):
        deployed(model(), decoding_onnx=True)
