"""Small dictionaries, tasks, models and batches."""

import torch

from fairseq.data import Dictionary

from fastdiss_fairseq.criterions.fastdiss import FastDiSSLoss, FastDiSSLossConfig
from fastdiss_fairseq.criterions.fsdfm import FSDFMLoss, FSDFMLossConfig
from fastdiss_fairseq.models.config import architecture_config
from fastdiss_fairseq.models.fastdiss import FastDiSSModel
from fastdiss_fairseq.models.fsdfm import FSDFMModel
from fastdiss_fairseq.tasks.fastdiss import FastDiSSTask, FastDiSSTaskConfig

#: Sizes that make a model of some ten thousand parameters.
MINIATURE = dict(
    encoder_embed_dim=32,
    decoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    decoder_ffn_embed_dim=48,
    encoder_layers=2,
    decoder_layers=2,
    latent_dim=16,
    dropout=0.0,
    max_length_offset=8,
)


def dictionary(size, prefix="w"):
    """A dictionary of ``size`` types, fairseq's four special ones included."""
    words = Dictionary()
    for i in range(size - len(words)):
        words.add_symbol(f"{prefix}{i}")
    return words


def task(source=40, target=None, **options):
    """A task with dictionaries of these sizes, joined where only one is given."""
    known = dictionary(source)
    other = known if target is None else dictionary(target, prefix="v")
    cfg = FastDiSSTaskConfig(
        seed=1,
        bf16=False,
        num_shards=1,
        shard_id=0,
        train_subset="train",
        dataset_impl=None,
        required_seq_len_multiple=1,
    )
    cfg.max_source_positions = cfg.max_target_positions = 64
    for name, value in options.items():
        setattr(cfg, name, value)
    return FastDiSSTask(cfg, known, other)


def model_config(arch="fastdiss_tiny", **options):
    cfg = architecture_config(arch)()
    cfg.max_source_positions = cfg.max_target_positions = 64
    for name, value in options.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    return cfg


def model(for_task=None, seed=0, **options) -> FastDiSSModel:
    """A miniature model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    cfg = model_config(**{**MINIATURE, **options})
    return FastDiSSModel.build_model(cfg, for_task or task()).eval()


def flow_model(for_task=None, seed=0, arch="fsdfm_tiny", **options) -> FSDFMModel:
    """A miniature FS-DFM model, in evaluation mode."""
    torch.manual_seed(seed)
    cfg = model_config(arch, **{**MINIATURE, **options})
    return FSDFMModel.build_model(cfg, for_task or task()).eval()


def flow_criterion(for_task=None, **options) -> FSDFMLoss:
    return FSDFMLoss.build_criterion(FSDFMLossConfig(seed=1, **{"sentence_avg": False, **options}), for_task or task())


def criterion(for_task=None, **options) -> FastDiSSLoss:
    cfg = FastDiSSLossConfig(seed=1, max_update=1000, sentence_avg=False)
    for name, value in options.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    return FastDiSSLoss.build_criterion(cfg, for_task or task())


def sentences(count, longest=12, vocabulary=40, seed=0, shortest=0):
    """Random sentences of ``shortest`` to ``longest`` words, each ended by </s>."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high, n: torch.randint(low, high, (n,), generator=generator).tolist()
    return [draw(4, vocabulary, length) + [2] for length in draw(shortest, longest + 1, count)]


def pad(rows, width=0):
    """Right-padded ids (B, T)."""
    width = max(width, *map(len, rows))
    return torch.tensor([row + [1] * (width - len(row)) for row in rows])


def batch(sources, targets=None, ids=None):
    """A fairseq batch; without ``targets`` as fairseq-interactive makes it."""
    src_tokens = pad(sources)
    sample = {
        "id": torch.arange(len(sources)) if ids is None else torch.as_tensor(ids),
        "net_input": {"src_tokens": src_tokens, "src_lengths": src_tokens.ne(1).sum(1)},
    }
    if targets is not None:
        sample["target"] = pad(targets)
        sample["ntokens"] = sum(map(len, targets))
    return sample
