"""fairseq's commands with the plugin, as a user types them."""

import random

import pytest
import torch

from conftest import (
    MEMORY, PLUGIN, ROOT, TRAINING, bleu_of, command, fastdiss, generate, lines, preprocess, preprocess_to_memorise,
    train, write_pairs,
)  # fmt: skip


def load(path):
    """A checkpoint as torch loads it by default: with ``weights_only`` on."""
    import fastdiss_fairseq  # noqa: F401  (allows fairseq's classes)

    return torch.load(path)


def test_training_logs_the_method_and_keeps_the_best(run):
    log = (run / "log").read_text()
    for name in ("diffusion_loss", "rounding_accuracy", "mans_moved", "scp_gap", "bleu"):
        assert f"{name}=" in log or f"{name} " in log
    assert (run / "checkpoint_best.pt").exists()
    meters = load(run / "checkpoint_best.pt")["extra_state"]
    assert "best" in meters and meters["best"] >= 0


@pytest.mark.parametrize("steps", [1, 4])
def test_generate_loses_no_sentence(data, checkpoint, steps):
    done = generate(data, checkpoint, "--decoding-steps", steps, "--print-step")
    assert sorted(map(int, lines(done.stdout, "H"))) == list(range(10))
    assert all(rest == [str(steps)] for rest in lines(done.stdout, "I").values())
    assert "Translated 10 sentences" in done.stderr + done.stdout


def test_one_line_test_set(text, tmp_path, checkpoint, data):
    for split, count in (("train", 3), ("valid", 1), ("test", 1)):
        write_pairs(tmp_path, split, count, random.Random(1))
    dictionary = data / "dict.src.txt"
    small = preprocess(tmp_path, tmp_path / "bin", "--srcdict", dictionary, "--tgtdict", data / "dict.tgt.txt")
    assert list(lines(generate(small, checkpoint).stdout, "H")) == ["0"]


def test_output_does_not_depend_on_batches(data, checkpoint):
    options = ["--decoding-steps", 3, "--noise-beam", 2, "--batch-size", 3]
    whole = lines(generate(data, checkpoint, *options).stdout, "H")
    single = lines(generate(data, checkpoint, *options[:-1], 1).stdout, "H")
    text_of = lambda found: {key: rest[0].split("\t")[1] for key, rest in found.items()}
    assert text_of(whole) == text_of(single)


def test_nbest_history_and_fairseq_flags(data, checkpoint):
    done = generate(
        data,
        checkpoint,
        "--iter-decode-max-iter",
        1,
        "--iter-decode-with-beam",
        3,
        "--noise-beam",
        2,
        "--decoding-choice",
        "mbr",
        "--nbest",
        4,
        "--retain-iter-history",
        "--print-step",
    )
    assert all(len(rest) == 4 for rest in lines(done.stdout, "H").values())
    assert set(lines(done.stdout, "I")["0"]) == {"2"}
    assert {"0_0", "0_1"} <= set(lines(done.stdout, "E")) and "0_2" not in lines(done.stdout, "E")
    scores = [float(rest.split("\t")[0]) for rest in lines(done.stdout, "H")["0"]]
    assert scores == sorted(scores, reverse=True)


def test_reranking_by_an_autoregressive_model(data, checkpoint, transformer):
    pair = f"{checkpoint}:{transformer}"
    done = generate(data, pair, "--decoding-choice", "ar", "--length-beam", 3, "--decoding-steps", 2)
    flag = generate(
        data, pair, "--iter-decode-with-external-reranker", "--iter-decode-with-beam", 3, "--decoding-steps", 2
    )
    assert len(lines(done.stdout, "H")) == 10
    assert lines(done.stdout, "H") == lines(flag.stdout, "H")


def test_interactive_answers_every_line(data, checkpoint):
    text = "s1 s2 s3\n\n" + "s4 " * 3000 + "\nunseen words\n"
    done = fastdiss(
        "interactive",
        data,
        "--path",
        checkpoint,
        "--cpu",
        "--decoding-steps",
        2,
        "--source-lang",
        "src",
        "--target-lang",
        "tgt",
        stdin=text,
    )
    assert sorted(lines(done.stdout, "H")) == ["0", "1", "2", "3"]


def test_interactive_agrees_with_generate(data, checkpoint, text):
    source = (text / "test.src").read_text()
    options = ["--decoding-steps", 3, "--path", checkpoint, "--cpu"]
    typed = fastdiss("interactive", data, *options, "-s", "src", "-t", "tgt", stdin=source)
    batch = fastdiss("generate", data, *options)
    text_of = lambda done: {key: rest[0].split("\t")[1] for key, rest in lines(done.stdout, "H").items()}
    assert text_of(typed) == text_of(batch)


def test_validate_reports_losses(data, checkpoint):
    done = fastdiss("validate", data, "--path", checkpoint, "--cpu", "--valid-subset", "valid", "--max-tokens", 400)
    assert "rounding_accuracy" in done.stdout + done.stderr


def test_score_reads_the_output(data, checkpoint, tmp_path):
    out = generate(data, checkpoint).stdout
    for kind, name in (("H", "sys"), ("T", "ref")):
        rows = sorted(lines(out, kind).items(), key=lambda item: int(item[0]))
        (tmp_path / name).write_text("".join(rest[0].split("\t")[-1] + "\n" for _, rest in rows))
    done = command("score", "--sys", tmp_path / "sys", "--ref", tmp_path / "ref")
    assert "BLEU4 = " in done.stdout


def test_hydra_trains_from_the_shipped_configuration(data, tmp_path):
    done = command(
        "hydra-train",
        f"--config-dir={ROOT}/examples/config",
        "--config-name=fastdiss",
        "+recipe=multi30k",
        "model._name=fastdiss_tiny",
        "model.autocast=none",
        f"task.data={data}",
        f"common.user_dir={PLUGIN}",
        "task.eval_bleu=false",
        "checkpoint.best_checkpoint_metric=loss",
        "checkpoint.maximize_best_checkpoint_metric=false",
        "common.cpu=true",
        "optimization.max_update=3",
        f"checkpoint.save_dir={tmp_path}/run",
        f"hydra.run.dir={tmp_path}",
        "dataset.num_workers=0",
        "task.source_lang=src",
        "task.target_lang=tgt",
        cwd=tmp_path,
    )
    state = load(tmp_path / "run" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 3, done.stdout[-2000:]


@pytest.mark.torch_2
def test_method_flags_and_bfloat16_train(data, tmp_path):
    done = train(
        data,
        tmp_path,
        "--max-update",
        2,
        "--scp-rule",
        "uniform",
        "--scp-coupling",
        "fresh",
        "--scp-hops",
        2,
        "--mans-scale",
        2,
        "--mans-phase",
        "[]",
        "--mans-start",
        0,
        "--rounding",
        "exact",
        "--autocast",
        "bf16",
        "--update-freq",
        2,
        "--noise-schedule",
        "cosine",
        "--label-smoothing",
        0.1,
        "--share-all-embeddings",
        "--encoder-learned-pos",
        "--decoder-learned-pos",
        "--layer-norm-position",
        "post",
    )
    assert "num_updates 2" in done.stdout + done.stderr


def test_a_checkpoint_says_which_solver_decodes_it(data, tmp_path):
    trained = train(data, tmp_path, "--max-update", 2, "--mixed-times", 0, "--eval-bleu")
    generated = generate(data, tmp_path / "checkpoint_last.pt", "--decoding-steps", 2)
    for done in (trained, generated):
        assert "renoise" in done.stdout + done.stderr and "mask_predict" not in done.stdout + done.stderr


NAT_OPTIONS = ["--apply-bert-init", "--share-all-embeddings", "--pred-length-offset", "--length-loss-factor", 0.1]


@pytest.mark.parametrize(
    "arch, noise, options",
    [
        ("nonautoregressive_transformer", "full_mask", NAT_OPTIONS),
        ("cmlm_transformer", "random_mask", NAT_OPTIONS),
        ("levenshtein_transformer", "random_delete", []),
    ],
)
@pytest.mark.slow
def test_stock_baselines_share_the_data(data, tmp_path, arch, noise, options):
    common = ["--user-dir", PLUGIN, "--task", "translation_lev", "--required-batch-size-multiple", 1]
    command(
        "train",
        data,
        *common,
        "--arch",
        arch,
        "--criterion",
        "nat_loss",
        "--noise",
        noise,
        *TRAINING,
        *options,
        "--encoder-layers",
        1,
        "--decoder-layers",
        1,
        "--max-update",
        2,
        "--save-dir",
        tmp_path,
    )
    done = command(
        "generate", data, *common, "--path", tmp_path / "checkpoint_last.pt", "--cpu", "--iter-decode-max-iter", 2
    )
    assert len(lines(done.stdout, "H")) == 10


def test_stock_transformer_loads_with_safe_loading(data, transformer):
    done = command(
        "generate", data, "--user-dir", PLUGIN, "--path", transformer, "--cpu", "--required-batch-size-multiple", 1
    )
    assert len(lines(done.stdout, "H")) == 10


@pytest.mark.slow
def test_overfits_a_few_sentences(tmp_path):
    """The whole chain can learn: fifty training sentences, in which words do repeat, are reproduced at every K."""
    data = preprocess_to_memorise(tmp_path)
    train(data, tmp_path / "run", *MEMORY, "--max-update", 900, "--log-interval", 100)
    for steps in (1, 5, 20):
        options = ["--decoding-steps", steps, "--decoding-repeats", "keep"]
        bleu = bleu_of(generate(data, tmp_path / "run" / "checkpoint_last.pt", *options))
        assert bleu > 90, (steps, bleu)


def test_interactive_shows_the_steps_where_asked_to(data, checkpoint):
    """They are shown as predicted, so the last is the result where repeats are kept."""
    always = ["interactive", data, "--path", checkpoint, "--cpu", "--decoding-steps", 3, "--decoding-repeats", "keep"]
    run = lambda *options: fastdiss(*always, *options, stdin="s1 s2\ns3\n").stdout
    shown = lines(run("--print-step"), "E")
    assert {step: len(texts) for step, texts in shown.items()} == {"1": 2, "2": 2, "3": 2}
    plain = run()
    assert lines(plain, "E") == {}
    assert shown["3"] == [lines(plain, "D")[i][0].split("\t")[1] for i in ("0", "1")]
