"""Mistakes of the user: one clear line that says what to do, a non-zero exit, nothing trained or overwritten."""

import os
import random
import shlex
import shutil
import string
import subprocess
import sys

import pytest
import torch
from commands import in_process
from conftest import ENVIRONMENT, MODEL, PLUGIN, TRAINING, preprocess, write_pairs
from fairseq.data import indexed_dataset
from helpers import task
from omegaconf import OmegaConf

import fastdiss_fairseq  # noqa: F401  (allows fairseq's classes in torch.load)
from fastdiss_fairseq.errors import FastDiSSError

#: Options that a command's lines below go on from.
ALWAYS = {
    "generate": ["--task", "fastdiss", "--cpu"],
    "interactive": ["--task", "fastdiss", "--cpu", "-s", "src", "-t", "tgt"],
    "validate": ["--task", "fastdiss", "--cpu", "--max-tokens", "400"],
    "train": [
        "--task",
        "fastdiss",
        "--arch",
        "fastdiss_tiny",
        "--criterion",
        "fastdiss_loss",
        *TRAINING,
        "--max-update",
        "2",
    ],
}


class Bomb:
    """Pickled, a file that runs a command when it is loaded carelessly."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    """Data with a dictionary of another size."""
    folder = tmp_path_factory.mktemp("other")
    for split in ("train", "valid", "test"):
        write_pairs(folder, split, 4, random.Random(2))
    return preprocess(folder, folder / "bin")


@pytest.fixture(scope="module")
def reranker(other_data, tmp_path_factory):
    """An autoregressive checkpoint on other data."""
    sizes = [f"--{side}-{name}=16" for side in ("encoder", "decoder") for name in ("embed-dim", "ffn-embed-dim")]
    folder = tmp_path_factory.mktemp("reranker")
    line = ["train", other_data, "--arch", "transformer", *sizes, "--encoder-layers=1", "--decoder-layers=1"]
    options = ["--optimizer", "adam", "--max-tokens", 400, "--cpu", "--max-update", 1, "--num-workers", 0]
    done = in_process([*line, *options, "--save-dir", folder, "--required-batch-size-multiple", 1])
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def places(data, other_data, reranker, checkpoint, transformer, text, tmp_path_factory):
    """What the lines below name: {name: path}."""
    folder = tmp_path_factory.mktemp("places")
    whole, random_bytes = checkpoint.read_bytes(), random.Random(1).randbytes(5000)
    state = torch.load(checkpoint)
    files = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:3000] + bytes(255 - byte for byte in whole[3000:3100]) + whole[3100:],
        "garbage": random_bytes,
        "prose": b"No checkpoint.\n" * 20,
        "reference": (text / "test.tgt").read_bytes(),
        "short": b"one line\n",
        "latin": "Gr\xfc\xdfe\n".encode("latin-1"),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch.save({"weight": torch.ones(2)}, folder / "foreign")
    torch.save([1, 2], folder / "list")
    torch.save({**state, "model": {"weight": torch.ones(2)}}, folder / "emptied")
    torch.save({"model": Bomb(folder / "exploded")}, folder / "bomb")
    for name in ("reordered", "no_words", "garbled_dict", "no_lines", "cut_index", "cut_data", "only_dict", "no_train"):
        shutil.copytree(data, folder / name)
    reorder(folder / "reordered" / "dict.src.txt")
    (folder / "no_words" / "dict.src.txt").write_bytes(b"")
    (folder / "garbled_dict" / "dict.tgt.txt").write_bytes(random_bytes)
    empty(folder / "no_lines", "test.src-tgt")
    halve(folder / "cut_index" / "test.src-tgt.src.idx")
    halve(folder / "cut_data" / "test.src-tgt.tgt.bin")
    for name, pattern in (("only_dict", "*.bin"), ("only_dict", "*.idx"), ("no_train", "train.*")):
        for file in (folder / name).glob(pattern):
            file.unlink()
    (folder / "resumed").mkdir()
    shutil.copy(checkpoint, folder / "resumed" / "checkpoint_last.pt")
    (folder / "damaged").mkdir()
    shutil.copy(folder / "truncated", folder / "damaged" / "checkpoint_last.pt")
    (folder / "bundle").mkdir()
    shutil.copy(checkpoint, folder / "bundle" / "model.pt")
    (folder / "bundle" / "bundle.json").write_text("{}\n")
    (folder / "file").write_text("no folder\n")
    paths = {path.name: path for path in folder.iterdir()}
    return {
        **paths,
        "data": data,
        "other": other_data,
        "checkpoint": checkpoint,
        "transformer": transformer,
        "reranker": reranker,
        "folder": folder,
        "sizes": " ".join(MODEL),
    }


def reorder(dictionary):
    words = dictionary.read_text().splitlines(keepends=True)
    dictionary.write_text("".join(words[:3][::-1] + words[3:]))


def empty(data, split):
    """Make a split of no sentences, as fairseq-preprocess makes it of empty files."""
    for side in ("src", "tgt"):
        path = str(data / f"{split}.{side}")
        indexed_dataset.make_builder(f"{path}.bin", "mmap", vocab_size=40).finalize(f"{path}.idx")


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


#: command line | words of the line it ends in
LINES = """
generate $data --path $checkpoint --decoding-steps 0                   | --decoding-steps must be a whole number of at least 1
generate $data --path $checkpoint --decoding-steps many                | invalid int value
generate $data --path $checkpoint --decoding-solver heun               | invalid choice
generate $data --path $checkpoint --decoding-choice best               | invalid choice
generate $data --path $checkpoint --decoding-estimate guess            | invalid choice
generate $data --path $checkpoint --length-beam 0                      | --length-beam
generate $data --path $checkpoint --noise-beam -1                      | --noise-beam
generate $data --path $checkpoint --decoding-choice ar                 | second --path
generate $data --path $checkpoint --iter-decode-with-external-reranker | second --path
generate $data --path $checkpoint:$checkpoint                          | decodes with one model
generate $data --path $checkpoint:$checkpoint --decoding-choice ar     | must be an autoregressive model
generate $data --path $checkpoint --gen-subset dev                     | no split 'dev'
generate $data --path $folder                                           | is a folder, no checkpoint
generate $data --path $checkpoint --decoding-noise-factor 0            | positive
generate $data --path $checkpoint --decoding-noise-factor nan          | positive
generate $data --path $checkpoint --decoding-temperature -1            | temperature
generate $data --path $checkpoint -s xx -t tgt                         | no dictionary dict.xx.txt
generate $data --path $checkpoint --score-reference                    | --score-reference
eval_lm $data --task fastdiss --path $checkpoint                       | no token-by-token likelihood
generate $data --path $checkpoint --print-alignment hard               | --print-alignment
generate $data --path $checkpoint --decoding-temperature inf           | temperature
generate $data --path $checkpoint --prefix-size 2                      | --prefix-size
interactive $data --path $checkpoint --constraints                    | --constraints
generate $data --path $checkpoint --num-shards 2 --shard-id 2          | --shard-id
generate $data --path $checkpoint --results-path $file/results         | $file/results
generate $data --path $checkpoint -s tgt -t src                        | trained from src to tgt, not the other way
generate $data --path $checkpoint --no-such-flag                       | unrecognized arguments
generate $data --path $checkpoint --task translation                   | --task fastdiss
generate $data                                                         | --path
generate $data --path $folder/none.pt                                  | none.pt
generate $data --path $folder                                          | $folder
generate $data --path $empty                                           | is empty
generate $data --path $truncated                                       | damaged
generate $data --path $flipped                                         | damaged
generate $data --path $garbage                                         | no checkpoint
generate $data --path $prose                                           | no checkpoint
generate $data --path $foreign                                         | no checkpoint of fairseq
generate $data --path $list                                            | no checkpoint of fairseq
generate $data --path $emptied                                         | weights
generate $data --path $bomb                                            | posix.system
generate $data --path $transformer                                     | not a FastDiSS model
generate $folder/none --path $checkpoint                               | no data folder
generate $other --path $checkpoint                                     | the dictionary has
generate $data --path $checkpoint:$reranker --decoding-choice ar       | the dictionary has
generate $reordered --path $checkpoint                                 | other words or another order
generate $no_words --path $checkpoint                                  | the dictionary has
generate $garbled_dict --path $checkpoint                              | dict.tgt.txt
generate $cut_index --path $checkpoint                                 | fairseq-preprocess
generate $cut_data --path $checkpoint                                  | fairseq-preprocess
generate $only_dict --path $checkpoint -s src -t tgt                   | no split 'test'
generate $folder --path $checkpoint                                    | cannot infer the languages
train $data --mans-scale 2,3 --mans-phase 10,20                        | 2 MANS scales need 1
train $data --mans-scale 2,3,4 --mans-phase 20,10 --mans-start 0       | must increase
train $data --mans-scale 0.5                                           | at least 1
train $data --max-update 0 --max-epoch 1                               | --max-update
train $data --scp-hops 3                                               | hops
train $data --scp-budgets 0,2                                          | budgets
train $data --mixed-times 1.5                                          | --mixed-times must be a probability
train $data --diffusion-loss-weight -1                                 | --diffusion-loss-weight must be at least 0
train $data --length-loss-factor nan                                   | --length-loss-factor must be at least 0
train $data --self-conditioning-prob -0.1                              | --self-conditioning-prob must be a probability
train $data --label-smoothing 2                                        | --label-smoothing must be a probability
train $data --dropout 2                                                | --dropout must be a probability
train $data --scp-rule near                                            | invalid choice
train $data --noise-schedule square                                    | invalid choice
train $data --noise-factor -1                                          | --noise-factor
train $data --decoder-attention-heads 5                                | --decoder-attention-heads
train $data --encoder-attention-heads 0                                | --encoder-attention-heads
train $data --latent-dim 0                                             | --latent-dim
train $data --fp16                                                     | needs a GPU
train $data --amp                                                      | needs a GPU
train $data --bf16                                                     | --autocast bf16
train $data --max-length-offset -1                                     | --max-length-offset
train $data --left-pad-target                                          | leave --left-pad-target out
train $data --decoding-int8                                            | not for training
train $data --optimizer best                                           | invalid choice
train $data --arch fastdiss_huge                                       | invalid choice
train $data --arch transformer                                         | choose one by --arch
train $data --criterion cross_entropy                                  | --criterion fastdiss_loss
train $data --criterion fsdfm_loss                                     | --arch fsdfm_* with fsdfm_loss
train $data --arch fsdfm_tiny --criterion fsdfm_loss --teacher-temperature -1 | --teacher-temperature must be at least 0
train $data --best-checkpoint-metric bleu                              | needs --eval-bleu
train $data --best-checkpoint-metric ppl                               | ppl is not measured here
train $data --best-checkpoint-metric rounding_accuracy                 | needs --maximize-best-checkpoint-metric
train $data --maximize-best-checkpoint-metric                          | loss excludes --maximize
train $data --task translation                                         | --task fastdiss
train $data --eval-bleu --eval-bleu-args '{"decoding_step":3}'         | decoding_step
train $data --eval-bleu --eval-bleu-args '{"decoding_steps":0}'        | at least 1
train $data --eval-bleu --eval-bleu-args '{decoding_steps:3}'          | --eval-bleu-args
train $data --eval-bleu --eval-bleu-args '[3]'                         | --eval-bleu-args
train $data --eval-bleu --eval-bleu-detok foo                          | --eval-bleu-detok foo is no tokeniser of fairseq's (moses
train $data --lr-scheduler polynomial_decay                            | --total-num-update must be given
train $data --lr-scheduler tri_stage                                   | please specify steps or phase_ratio
train $data --max-tokens 1                                             | training sentences is as short as
train $data --valid-subset dev                                         | no split 'dev'
train $no_train                                                        | no split 'train'
generate $no_lines --path $checkpoint                                  | empty or damaged
train $folder                                                          | cannot infer the languages
train $garbled_dict                                                    | dict.tgt.txt
train $other --share-all-embeddings                                    | joined dictionary
train $data --save-dir $file                                           | $file
train $data --restore-file $folder/none.pt                             | none.pt
train $data --restore-file $garbage                                    | no checkpoint
train $data --restore-file $bundle/model.pt                            | no optimizer to go on with: give it as --finetune-from-model
generate $data --path $checkpoint --tokenizer moses                     | --tokenizer moses needs to know the languages
train $data --finetune-from-model $folder/none.pt                      | none.pt
train $data --save-dir $damaged                                        | damaged
train $data --save-dir $resumed $sizes --encoder-ffn-embed-dim 48      | trained with
train $data --save-dir $resumed $sizes --optimizer sgd                 | --reset-optimizer
train $other --save-dir $resumed $sizes                                | the dictionary has
validate $data --path $checkpoint --valid-subset dev                   | no split 'dev'
validate $data --path $truncated --valid-subset valid                  | damaged
interactive $data --path $checkpoint --input $folder/none              | none
interactive $data --path $checkpoint --input $latin                    | UTF-8
interactive $data --path $checkpoint --batch-size 4                    | --buffer-size
interactive $data --path $checkpoint --bpe subword_nmt --bpe-codes $folder/none | none
interactive $data --path $checkpoint --decoding-steps -3               | at least 1
interactive $data --path $empty                                        | is empty
fastdiss-score $folder/none $reference                                 | none
fastdiss-score $prose $reference                                       | no output of fairseq-generate
fastdiss-export $garbage --data $data --output $new                    | no checkpoint
fastdiss-export $transformer --data $data --output $new                | not a FastDiSS model
fastdiss-export $checkpoint --data $folder --output $new               | no dictionary
fastdiss-export --verify $folder                                       | no bundle
fastdiss-benchmark $data --path $checkpoint --ar $checkpoint --output $new --cpu --parts decoding | --ar takes the checkpoint of an autoregressive model; this one holds fastdiss_tiny
fastdiss-benchmark $data --path $checkpoint --cmlm $transformer --output $new --cpu --parts decoding | --cmlm takes the checkpoint of a CMLM model; this one holds Transformer
fastdiss-benchmark $data --path $checkpoint --output $new --cpu --parts decoding --against nobody | there is no contender 'nobody'
fastdiss-distill $folder --path $transformer --output $new             | no data that fairseq-preprocess has made
fastdiss-average $checkpoint $truncated --output $new                  | damaged
fastdiss-average $checkpoint --output $file/average.pt                 | $file
fastdiss-sweep $data --path $bomb --reference $reference --steps 1 --output $new | posix.system
fastdiss-sweep $data --path $checkpoint --reference $short --steps 1 --output $new | lines, the split
"""


def cases():
    for row in LINES.strip().splitlines():
        line, words = row.rsplit(" | ", 1)
        yield pytest.param(line.strip(), words.strip(), id=line.replace("$", "").strip())


def run_line(line, places, new, run=in_process):
    """Run a line of the table; what it makes is to lie in the folder ``new``."""
    words = shlex.split(string.Template(line).substitute(places, new=new))
    always = list(ALWAYS.get(words[0], []))
    if words[0] == "train" and "--save-dir" not in words:
        always += ["--save-dir", str(new)]
    return run([words[0], words[1], *always, *words[2:]])


def message(done):
    """The line that explains; asserts that the command failed without a traceback."""
    assert done.returncode != 0, done.stdout[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("line, words", list(cases()))
def test_a_mistake_ends_in_one_line(line, words, places, tmp_path):
    before = sorted(places["folder"].rglob("*"))
    assert string.Template(words).substitute(places) in message(run_line(line, places, tmp_path / "new"))
    assert not list(tmp_path.rglob("*.pt")) and sorted(places["folder"].rglob("*")) == before


def process(words):
    """Run a command line in a new interpreter."""
    name, *rest = words
    module = f"fastdiss_fairseq.tools.{name[9:]}" if name.startswith("fastdiss-") else f"fairseq_cli.{name}"
    start = [sys.executable, "-c", f"from {module} import cli_main; cli_main()", *rest]
    plugin = [] if name.startswith("fastdiss-") else ["--user-dir", PLUGIN]
    return subprocess.run(start + plugin, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


@pytest.mark.parametrize(
    "line",
    [
        "generate $data --path $bomb",
        "fastdiss-average $checkpoint --output $file/average.pt",
    ],
)
def test_a_process_of_its_own_says_the_same(line, places, tmp_path):
    here, there = run_line(line, places, tmp_path), run_line(line, places, tmp_path, run=process)
    assert (there.returncode, message(there)) == (here.returncode, message(here)) == (1, message(here))
    assert not (places["folder"] / "exploded").exists()


def test_options_that_do_not_go_together_are_not_listed(places, tmp_path):
    done = run_line("generate $data --path $checkpoint --tokenizer moses", places, tmp_path / "new", run=process)
    assert "give -s and -t" in message(done) and "Overrides" not in done.stderr + done.stdout


def test_an_architecture_must_be_named(data):
    line = [sys.executable, "-m", "fairseq_cli.train", data, "--user-dir", PLUGIN, "--task", "fastdiss"]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert message(done) == "fastdiss: error: --arch must be given, such as --arch fastdiss_tiny"


def without_rights(line, places, new):
    """Run a line without root's power to open anything; as another user nothing needs to be given up."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to run without root's rights")

    def process(words):
        start = [*drop, sys.executable, "-m", f"fairseq_cli.{words[0]}", *words[1:], "--user-dir", PLUGIN]
        return subprocess.run(start, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)

    return run_line(line, places, new, run=process)


def test_missing_rights(places, tmp_path):
    closed, read_only = tmp_path / "closed.pt", tmp_path / "read_only"
    shutil.copy(places["checkpoint"], closed)
    closed.chmod(0)
    read_only.mkdir(mode=0o500)
    here = {**places, "closed": closed, "read_only": read_only}
    assert "Permission denied" in message(without_rights("generate $data --path $closed", here, tmp_path))
    assert "Permission denied" in message(without_rights("train $data --save-dir $read_only/run", here, tmp_path))


#: name: (what is typed, how many answers)
TYPED = {
    "an empty line": (b"\n", 1),
    "no line at all": (b"", 0),
    "no end of line": (b"s1 s2", 1),
    "bytes that are no text": (b"s1 \xff\xfe\x80\ns2\n", 2),
    "a lone surrogate": ("s1 \ud800 s2\n".encode("utf-8", "surrogatepass") + b"s3\n", 2),
    "zeros and other controls": (b"s1 \x00\x01\x1b[2J s2\ns3\n", 2),
    "binary garbage": (bytes(range(256)).replace(b"\n", b"").replace(b"\r", b"") + b"\ns1\n", 2),
    "other scripts and emoji": ("日本語 \u202e\u200b 👩‍👩‍👧 s1\n".encode(), 1),
    "10 MB of words": (b"s1 " * 3_500_000 + b"\ns2\n", 2),
    "10 MB without a space": (b"s" * 10_000_000 + b"\ns2\n", 2),
}


BPE = ["--bpe", "subword_nmt", "--bpe-codes", "$codes", "--tokenizer", "moses"]


@pytest.mark.parametrize("options", [[], BPE], ids=["plain", "bpe"])
@pytest.mark.parametrize("typed", list(TYPED))
def test_interactive_answers_whatever_is_typed(typed, options, places, tmp_path):
    codes = tmp_path / "codes"
    codes.write_text("#version: 0.2\ns 1</w>\n")
    text, answers = TYPED[typed]
    line = ["interactive", "$data", "--path", "$checkpoint", "--decoding-steps", "1", *options]
    done = run_line(" ".join(line), {**places, "codes": codes}, tmp_path, run=lambda words: in_process(words, text))
    assert done.returncode == 0, done.stderr[-2000:]
    found = [row for row in done.stdout.splitlines() if row.startswith("H-")]
    assert len(found) == answers
    assert typed != "an empty line" or found[0].split("\t")[2] == ""


@pytest.mark.parametrize(
    "build, message", [("build_model", "choose one by --arch"), ("build_criterion", "fastdiss_loss")]
)
def test_names_misspelt_in_a_configuration_of_hydras(build, message):
    """The command line knows its choices; hydra takes any."""
    options = {"best_checkpoint_metric": "loss", "fp16": False, "amp": False}
    with pytest.raises(FastDiSSError, match=message):
        getattr(task(**options), build)(OmegaConf.create({"_name": "fastdis"}))


def test_an_interactive_process_survives_bytes_that_are_no_text(data, checkpoint):
    line = [sys.executable, "-m", "fairseq_cli.interactive", data, "--user-dir", PLUGIN, "--path", checkpoint]
    typed, _ = TYPED["bytes that are no text"]
    done = subprocess.run(
        [*map(str, line), *ALWAYS["interactive"]], input=typed, capture_output=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0 and done.stdout.count(b"H-") == 2, done.stderr[-2000:]
