import copy
import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch

from fastdiss_fairseq import FastDiSS
from fastdiss_fairseq.bundle import sha256
from fastdiss_fairseq.errors import FastDiSSError
from fastdiss_fairseq.tools import export

BUNDLE = Path(__file__).parents[1] / "models" / "multi30k_de_en"
SENTENCES = ["Ein Mann schläft auf einer Bank.", "Zwei Hunde spielen im Schnee.", "Eine Frau mit rotem Hut, die lacht."]


@pytest.fixture(scope="module")
def model():
    return FastDiSS.from_pretrained(BUNDLE)


def test_translates_raw_text(model):
    first, second, third = model.translate(SENTENCES, steps=5)
    assert "man" in first and "bench" in first and first.endswith(".") and "@@" not in first
    assert "dogs" in second and "snow" in second
    assert "woman" in third


def test_the_table_of_embeddings_is_made_once(model):
    model.translate(SENTENCES, steps=1)
    kept = model.models[0].embedding.kept.table
    model.translate(SENTENCES[:1], steps=2)
    assert model.models[0].embedding.kept.table is kept


def test_the_batch_does_not_matter(model):
    together = model.decode(SENTENCES, steps=3, length_beam=2, noise_beam=2)
    assert model.decode(SENTENCES[::-1], steps=3, batch_size=1, length_beam=2, noise_beam=2)[::-1] == [
        [candidate._replace(score=pytest.approx(candidate.score, abs=1e-4)) for candidate in candidates]
        for candidates in together
    ]


def test_the_seed_is_that_of_fairseqs_commands_unless_given(model):
    """The shipped model was trained with another."""
    several = lambda **seed: model.decode(SENTENCES, steps=2, noise_beam=3, decoding_solver="renoise", **seed)
    assert several() == several(seed=1) != several(seed=2)
    with pytest.raises(FastDiSSError, match="seed must be a whole number .*not 'x'"):
        model.translate(SENTENCES, seed="x")


def test_candidates_are_ordered_and_counted(model):
    for candidates in model.decode(SENTENCES, steps=4, length_beam=3):
        scores = [candidate.score for candidate in candidates]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        assert {candidate.evaluations for candidate in candidates} == {4}
        assert candidates[0].steps == []


def test_the_text_after_each_step(model):
    best = model.decode(SENTENCES[:1], steps=3, return_steps=True)[0][0]
    assert len(best.steps) == 3 and best.steps[-1] == best.text
    assert best.text == model.translate(SENTENCES[:1], steps=3)[0]


def test_nothing_and_empty_lines(model):
    assert model.translate([]) == []
    assert model.translate(["", "   ", "\n"], steps=1) == ["", "", ""]
    (best, *others), (word, *_) = model.decode([" ", SENTENCES[0]], steps=2, length_beam=3, return_steps=True)
    assert len(others) == 2 and best.text == "" and best.steps == ["", ""] and word.text


def test_any_iterable_of_strings_is_translated(model):
    expected = model.translate(SENTENCES, steps=1)
    assert model.translate(iter(SENTENCES), steps=1) == expected
    assert model.translate(numpy.array(SENTENCES), steps=1) == expected and model.translate(iter([])) == []


@pytest.mark.parametrize(
    "sentences, options, message",
    [
        ("one string", {}, "list of strings, not str"),
        (None, {}, "list of strings, not NoneType"),
        ([SENTENCES[0], 3], {}, "list of strings, not int"),
        (SENTENCES, {"beam_width": 3}, "unknown generation option.*beam_width"),
        (SENTENCES, {"steps": 0}, "at least 1"),
        (SENTENCES, {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        (SENTENCES, {"decoding_solver": "euler"}, "unknown solver 'euler'"),
        (SENTENCES, {"decoding_temperature": "1"}, "decoding_temperature must be a number, not '1'"),
        (SENTENCES, {"early_exit": "no"}, "early_exit must be True or False, not 'no'"),
    ],
)
def test_wrong_arguments(model, sentences, options, message):
    with pytest.raises(FastDiSSError, match=message):
        model.translate(sentences, **options)


def test_the_text_is_tokenised_as_the_training_text_was(tmp_path):
    """Not as the name of the data's language says, which may be none that Moses knows."""
    copy = tmp_path / "bundle"
    shutil.copytree(BUNDLE, copy)
    description = json.loads((copy / "bundle.json").read_text())
    assert description["tokenizer_langs"] == ["de", "en"]
    (copy / "bundle.json").write_text(json.dumps({**description, "tokenizer_langs": ["en", "en"]}))
    assert FastDiSS.from_pretrained(copy).tokenizer.encode("It's well-known") == "It &apos;s well @-@ known"
    (tmp_path / "stats.json").write_text(json.dumps({"settings": {"tokenised": True}}))
    for words, expected in (("the 's", "It 's well-known"), ("&apos;s @-@", "It &apos;s well @-@ known")):
        (tmp_path / "dict").write_text(words)
        description["moses"] = export.moses_options(tmp_path, [tmp_path / "dict"])
        (copy / "bundle.json").write_text(json.dumps({**description, "tokenizer_langs": ["en", "en"]}))
        assert FastDiSS.from_pretrained(copy).tokenizer.encode("It's well-known") == expected
    assert export.moses_options(copy, [copy / "dict.en.txt"]) == {}


def damaged(folder, name):
    """A copy of the bundle with one line more in a file."""
    copy = folder / "bundle"
    shutil.copytree(BUNDLE, copy)
    with open(copy / name, "a") as stream:
        stream.write("x 1\n")
    return copy


def test_a_damaged_bundle_is_refused(tmp_path):
    copy = damaged(tmp_path, "codes")
    with pytest.raises(FastDiSSError, match="checksum differs"):
        FastDiSS.from_pretrained(copy)
    with pytest.raises(FastDiSSError, match="no bundle"):
        FastDiSS.from_pretrained(tmp_path)


def test_fairseqs_hub_interface_gives_the_same(model):
    from fastdiss_fairseq.models.fastdiss import FastDiSSModel

    hub = FastDiSSModel.from_pretrained(str(BUNDLE))
    options = dict(decoding_steps=3, length_beam=2, noise_beam=2, decoding_choice="mbr")
    assert hub.translate(SENTENCES, **options) == model.translate(
        SENTENCES, steps=3, length_beam=2, noise_beam=2, decoding_choice="mbr"
    )
    assert hub.translate(SENTENCES[0], decoding_steps=1) == model.translate(SENTENCES[:1], steps=1)[0]
    with pytest.raises(FastDiSSError, match="unknown generation option: steps"):
        hub.translate(SENTENCES, steps=1)


def test_the_hub_takes_a_checkpoint_of_a_fairseq_with_more_options(tmp_path, model):
    from fastdiss_fairseq.models.fastdiss import FastDiSSModel

    copy = shutil.copytree(BUNDLE, tmp_path / "bundle")
    state = torch.load(copy / "model.pt", map_location="cpu", weights_only=False)
    state["cfg"]["generation"]["beam_of_a_later_fairseq"] = 5
    torch.save(state, copy / "model.pt")
    description = json.loads((copy / "bundle.json").read_text())
    description["sha256"]["model.pt"] = sha256(copy / "model.pt")
    (copy / "bundle.json").write_text(json.dumps(description))
    hub = FastDiSSModel.from_pretrained(str(copy))
    assert hub.translate(SENTENCES, decoding_steps=1) == model.translate(SENTENCES, steps=1)


def test_decoding_options_are_the_codes_defaults_not_those_of_the_training(model):
    """As fairseq-generate has it; the shipped model was trained when another solver was the default."""
    from fastdiss_fairseq.generation.config import decoding_defaults

    given = {name: str(model.task.cfg[name]) for name in decoding_defaults()}
    assert given == {name: str(value) for name, value in decoding_defaults().items()}
    assert model.translate(SENTENCES) == model.translate(SENTENCES, decoding_solver="mask_predict")


@pytest.mark.parametrize("training", [{}, {"eval_bleu": True}], ids=str)
def test_the_hub_changes_the_model_for_decoding(model, training):
    """Also where the bundle is older than the option, and where the task makes a generator before the weights come."""
    pytest.importorskip("onnxruntime")
    from fastdiss_fairseq.models.fastdiss import FastDiSSModel

    hub = FastDiSSModel.from_pretrained(str(BUNDLE), decoding_onnx=True, **training)
    assert hub.translate(SENTENCES, decoding_steps=2) == model.translate(SENTENCES, steps=2)
    assert hub.models[0].runtime is not None


@pytest.mark.parametrize(
    "device, message", [("vulkan", "device vulkan cannot be used here"), ("gpu", "unknown device 'gpu'")]
)
def test_a_device_that_is_not_there(device, message):
    with pytest.raises(FastDiSSError, match=message):
        FastDiSS.from_pretrained(BUNDLE, device)


def test_the_hub_names_a_path_that_does_not_exist(tmp_path):
    from fastdiss_fairseq.models.fastdiss import FastDiSSModel

    with pytest.raises(FastDiSSError, match="no model"):
        FastDiSSModel.from_pretrained(str(tmp_path / "none"))


def test_the_hub_verifies_a_bundle_too(tmp_path):
    from fastdiss_fairseq.models.fastdiss import FastDiSSModel

    copy = damaged(tmp_path, "dict.en.txt")
    with pytest.raises(FastDiSSError, match="checksum differs"):
        FastDiSSModel.from_pretrained(copy)


def test_confidences_after_each_step(model):
    candidate = model.search(SENTENCES[:1], steps=3, retain_iter_history=True)[0][0]
    assert len(candidate["history"]) == 3
    last = candidate["history"][-1]
    assert torch.equal(last["tokens"], candidate["tokens"])
    assert torch.equal(last["positional_scores"], candidate["positional_scores"])
    assert all((step["positional_scores"] <= 0).all() for step in candidate["history"])


def test_reranking_from_python(data, checkpoint, transformer, tmp_path):
    from fastdiss_fairseq.tools.export import export

    export(checkpoint, data, tmp_path / "bundle")
    model = FastDiSS.from_pretrained(tmp_path / "bundle", reranker=transformer)
    options = dict(steps=2, length_beam=3)
    ranked = model.decode(["s1 s2 s3"], decoding_choice="ar", **options)[0]
    scores = [candidate.score for candidate in ranked]
    assert scores == sorted(scores, reverse=True)
    plain = model.decode(["s1 s2 s3"], **options)[0]
    assert {c.text for c in plain} == {c.text for c in ranked}
    assert sorted(scores) != sorted(candidate.score for candidate in plain)
    with pytest.raises(FastDiSSError, match="second --path"):
        FastDiSS.from_pretrained(tmp_path / "bundle").decode(["s1"], decoding_choice="ar")
    with pytest.raises(FastDiSSError, match="no checkpoint"):
        FastDiSS.from_pretrained(tmp_path / "bundle", reranker=tmp_path / "none.pt")
    with pytest.raises(FastDiSSError, match="must be an autoregressive model; this one is fastdiss_tiny"):
        FastDiSS.from_pretrained(tmp_path / "bundle", reranker=tmp_path / "bundle" / "model.pt")


def test_what_changes_the_model_is_said_when_it_is_loaded(model):
    coarse = FastDiSS.from_pretrained(BUNDLE, decoding_bf16=True)
    exact = model.decode(SENTENCES, steps=2)
    for ours, theirs in zip(coarse.decode(SENTENCES, steps=2), exact):
        assert abs(ours[0].score - theirs[0].score) < 0.1
    assert {p.dtype for p in coarse.models[0].parameters()} == {torch.bfloat16}
    with pytest.raises(FastDiSSError, match="unknown option: half"):
        FastDiSS.from_pretrained(BUNDLE, half=True)
    with pytest.raises(FastDiSSError, match="decoding_bf16 must be True or False, not 'no'"):
        FastDiSS.from_pretrained(BUNDLE, decoding_bf16="no")


def test_a_model_of_other_linear_layers_takes_no_weights(model):
    changed = FastDiSS.from_pretrained(BUNDLE, decoding_int8=True)
    changed.translate(SENTENCES[:1])
    with pytest.raises(FastDiSSError, match="takes no other weights"):
        changed.models[0].load_state_dict(model.models[0].state_dict())


def test_a_copy_is_a_model_of_its_own(model):
    weights = model.models[0].state_dict()
    original = FastDiSS.from_pretrained(BUNDLE, decoding_int8=True)
    changed = copy.deepcopy(original)
    assert changed.translate(SENTENCES) == FastDiSS.from_pretrained(BUNDLE, decoding_int8=True).translate(SENTENCES)
    with pytest.raises(FastDiSSError, match="takes no other weights"):
        changed.models[0].load_state_dict(weights)
    original.models[0].load_state_dict(weights)
    assert copy.deepcopy(model).translate(SENTENCES) == model.translate(SENTENCES)


def test_a_loaded_model_can_be_trained_on_and_is_decoded_as_it_stands():
    model = FastDiSS.from_pretrained(BUNDLE)
    before = model.decode(SENTENCES, steps=2)
    (net,) = model.models
    net.train()
    for weight in net.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    after = model.decode(SENTENCES, steps=2)
    net.embedding.kept = None
    assert model.decode(SENTENCES, steps=2) == after != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    with pytest.raises(FastDiSSError, match="no GPU"):
        FastDiSS.from_pretrained(tmp_path, device="cuda:0")
