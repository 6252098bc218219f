"""What the models have in common: encoder, embedding, a network on the target and length prediction."""

import contextlib
import os
import zlib
from dataclasses import fields
from typing import FrozenSet, NamedTuple, Optional

import torch
from omegaconf import open_dict
from torch import Tensor

from fairseq.dataclass.configs import GenerationConfig
from fairseq.models import BaseFairseqModel

from ..compat import bfloat16, compile_calls, int8_linears
from ..errors import FastDiSSError, flag
from ..modules.embedding import LatentEmbedding, Positions, ProjectedEmbedding, ScaledEmbedding
from ..modules.encoder import Encoder
from ..modules.graphs import Graphs, Recorder
from .onnx import OnnxRuntime
from ..modules.length import LengthPredictor
from ..modules.target import Memory, TargetNetwork
from ..modules.transformer import LayerConfig
from .config import ModelConfig, check_not_negative, check_probability


class Source(NamedTuple):
    """An encoded source: ``memory`` for the denoiser, ``length_logits`` (B, offsets) float32,
    ``lengths`` (B,) of the source."""

    memory: Memory
    length_logits: Tensor
    lengths: Tensor


class FewStepModel(BaseFairseqModel):
    """A sequence-to-sequence model that decodes all positions together, in K evaluations of one network.

    Args:
        cfg: the options.
        source_dictionary, target_dictionary: fairseq dictionaries.

    Subclasses have :meth:`build_denoiser`, the network; ``process``, what decoding must know of training; and ``presets``,
    the options of decoding that differ from the task's defaults.
    """

    def __init__(self, cfg: ModelConfig, source_dictionary, target_dictionary):
        super().__init__()
        self.cfg, self.padding_idx = cfg, target_dictionary.pad()
        self.num_updates = 0
        # what decoding reads often, where omegaconf takes long
        self.autocasts = str(cfg.autocast) == "bf16"
        self._max_positions = cfg.max_source_positions, cfg.max_target_positions
        self.runtime: Optional[OnnxRuntime] = None  # evaluates the networks in the place of torch
        self.changed_by: FrozenSet[str] = frozenset()  # the options that changed it for decoding
        self.graphs: Optional[Graphs] = None  # recordings of how it decodes, on a GPU
        checksums = [fingerprint(words) for words in (source_dictionary, target_dictionary)]
        self.register_buffer("dictionary_versions", torch.tensor(checksums))  # fairseq's EMA leaves "version"s alone
        self.embedding = LatentEmbedding(len(target_dictionary), cfg.latent_dim)
        self.encoder = self._build_encoder(source_dictionary)
        positions = Positions(cfg.max_target_positions, cfg.decoder_embed_dim, cfg.decoder_learned_pos)
        self.denoiser = self.build_denoiser(self.layer_config("decoder"), positions)
        self.length = LengthPredictor(cfg.encoder_embed_dim, cfg.max_length_offset)

    @classmethod
    def build_model(cls, cfg, task):
        """Build from options and a task with dictionaries.

        Raises:
            FastDiSSError: a task that is not ours, or options that do not fit each other or the dictionaries.
        """
        if not hasattr(getattr(task, "cfg", None), "decoding_solver"):
            raise FastDiSSError(
                f"{cfg._name} is trained and decoded with --task fastdiss, not by {type(task).__name__}"
            )
        check_config(cfg, task.source_dictionary, task.target_dictionary)
        return cls(cfg, task.source_dictionary, task.target_dictionary)

    @classmethod
    def from_pretrained(cls, model_name_or_path, checkpoint_file="model.pt", data_name_or_path=".", **kwargs):
        """fairseq's hub interface; a bundle brings its languages, tokeniser and BPE codes along.

        Raises:
            FastDiSSError: no such file or folder, or a bundle with a file that is not the one exported.
        """
        from ..bundle import Bundle  # above the models: it knows how to decode

        if not os.path.exists(model_name_or_path):
            raise FastDiSSError(f"no model {model_name_or_path}")
        bundle = Bundle(model_name_or_path) if Bundle.is_at(model_name_or_path) else None
        known = bundle.task_options() if bundle else {}
        interface = super().from_pretrained(
            str(model_name_or_path), checkpoint_file, data_name_or_path, **{**known, **kwargs}
        )
        if bundle:
            interface.tokenizer, interface.bpe = bundle.text_codecs()
        generation = interface.cfg.generation
        with open_dict(generation):  # a checkpoint of another fairseq brings that one's options
            for name in set(generation) - {f.name for f in fields(GenerationConfig)}:
                del generation[name]
        return interface

    def build_denoiser(self, layer: LayerConfig, positions: Positions) -> TargetNetwork:
        raise NotImplementedError

    @property
    def deployed(self) -> "FewStepModel":
        """The model that decodes."""
        return self

    def after_update(self) -> None:
        """Called by the task after each step of the optimizer."""

    def layer_config(self, side: str) -> LayerConfig:
        """The sizes of the layers of ``encoder`` or ``decoder``."""
        cfg = self.cfg
        return LayerConfig(
            dim=getattr(cfg, f"{side}_embed_dim"),
            ffn_dim=getattr(cfg, f"{side}_ffn_embed_dim"),
            heads=getattr(cfg, f"{side}_attention_heads"),
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            activation_dropout=cfg.activation_dropout,
            activation=str(cfg.activation_fn),
            pre_norm=str(cfg.layer_norm_position) == "pre",
            memory_dim=cfg.encoder_embed_dim if side == "decoder" else None,
        )

    def _build_encoder(self, dictionary) -> Encoder:
        cfg, dim = self.cfg, self.cfg.encoder_embed_dim
        if cfg.share_all_embeddings:
            embedding = ProjectedEmbedding(self.embedding, dim)
        else:
            embedding = ScaledEmbedding(len(dictionary), dim, dictionary.pad())
        positions = Positions(cfg.max_source_positions, dim, cfg.encoder_learned_pos)
        return Encoder(self.layer_config("encoder"), cfg.encoder_layers, embedding, positions)

    def set_num_updates(self, num_updates):
        """Called by fairseq before each update; the noise of training depends on it."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    def max_positions(self):
        return self._max_positions

    def precision(self, device: torch.device):
        """The context the networks run in: bfloat16 autocast where the options ask for it, but on a CPU not of weights in
        half precision, which it does not take there."""
        refused = device.type == "cpu" and self.embedding.weight.dtype == torch.float16
        return bfloat16(device) if self.autocasts and not refused else contextlib.nullcontext()

    def quantise(self) -> None:
        """Make the linear layers of all transformer layers int8, for decoding on a CPU; the rest is float32 then."""
        self.autocasts = False
        for layers in (self.encoder.layers, self.denoiser.layers):
            int8_linears(layers)

    def to_bfloat16(self) -> None:
        """Hold all weights in bfloat16, for decoding; autocast, which would convert them at each call, is off then."""
        self.bfloat16()
        self.autocasts = False

    def compile_step(self) -> None:
        """Have the network on the target compiled when it is first called, for decoding."""
        compile_calls(self.denoiser)

    def use_cuda_graphs(self) -> None:
        """Have decoding recorded, and replayed, from now on.

        Raises:
            FastDiSSError: the model is not on a GPU.
        """
        if self.dictionary_versions.device.type != "cuda":
            raise FastDiSSError("--decoding-cuda-graphs needs a GPU")
        self.graphs = self.graphs or Graphs(Recorder)

    def _apply(self, *arguments, **options):
        """Called by torch where weights are moved or converted: recordings read them where they were."""
        found = super()._apply(*arguments, **options)
        self.graphs = self.graphs and self.graphs.anew()
        return found

    def encode(self, src_tokens: Tensor) -> Source:
        """Encode (B, S) ids; sources longer than the model's positions are cut."""
        limit = self._max_positions[0]
        if src_tokens.size(1) > limit:
            src_tokens = cut(pad_right(src_tokens, self.padding_idx), limit)
        mask = src_tokens.ne(self.padding_idx)
        if self.runtime is not None:
            logits, memory = self.runtime.encode(src_tokens)
            return Source(memory, logits, mask.sum(1))
        with self.precision(src_tokens.device):
            states = self.encoder(src_tokens, mask)
            logits = self.length(states, mask)
            return Source(self.denoiser.memory(states, mask), logits, mask.sum(1))

    def rounded(self, z: Tensor):
        """z (N, D) and :meth:`table`, from which logits are computed."""
        table = self.table()
        return z.to(table.dtype), table

    def table(self) -> Tensor:
        """The rows z_0 of all tokens (V, D), in the precision that logits are computed in."""
        if self.runtime is not None:
            return self.runtime.table
        table = self.embedding.table()
        return table.bfloat16() if self.autocasts else table


def pad_right(tokens: Tensor, padding_idx: int) -> Tensor:
    """Tokens (B, S) with all padding behind them."""
    return tokens.gather(1, tokens.eq(padding_idx).int().sort(dim=1, stable=True).indices)


def cut(tokens: Tensor, limit: int) -> Tensor:
    """The first ``limit`` columns of right-padded tokens (B, S)."""
    return tokens[:, :limit]


#: Options that count something.
COUNTS = (
    "latent_dim",
    "max_source_positions",
    "max_target_positions",
    *(
        f"{side}_{name}"
        for side in ("encoder", "decoder")
        for name in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads")
    ),
)


def check_config(cfg, source_dictionary, target_dictionary) -> None:
    """Raise FastDiSSError where options do not fit each other or the dictionaries."""
    if cfg.share_all_embeddings and source_dictionary != target_dictionary:
        raise FastDiSSError(
            "--share-all-embeddings requires a joined dictionary (fairseq-preprocess --joined-dictionary)"
        )
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        check_probability(name, getattr(cfg, name))
    for name in COUNTS:
        if getattr(cfg, name) < 1:
            raise FastDiSSError(f"{flag(name)} must be at least 1, not {getattr(cfg, name)}")
    check_not_negative("max_length_offset", cfg.max_length_offset)
    for side in ("encoder", "decoder"):
        if getattr(cfg, f"{side}_embed_dim") % (2 * getattr(cfg, f"{side}_attention_heads")):
            raise FastDiSSError(f"--{side}-embed-dim must be a multiple of twice --{side}-attention-heads")


def fingerprint(dictionary) -> int:
    """A checksum of a dictionary's words and their order, below 2^32."""
    return zlib.crc32("\n".join(dictionary.symbols).encode("utf-8", "surrogateescape"))


def check_weights(model: torch.nn.Module, state_dict) -> None:
    """Raise FastDiSSError where a checkpoint does not fit the dictionaries, or a FastDiSS model's options."""
    check_dictionary(model, state_dict)
    if not isinstance(model, FewStepModel):
        return
    if model.changed_by & {"decoding_int8", "decoding_onnx"}:
        raise FastDiSSError(
            "a model that was changed by --decoding-int8 or --decoding-onnx takes no other weights: load it anew"
        )
    for name in [name for name in state_dict if name.endswith("encoder.embedding.latent.weight")]:
        del state_dict[name]  # a second name that older checkpoints have of the embedding
    own, saved = (
        {name: tuple(value.shape) for name, value in state.items()} for state in (model.state_dict(), state_dict)
    )
    for name in sorted(set(own) | set(saved)):
        if own.get(name) != saved.get(name):
            raise FastDiSSError(
                f"the weights do not fit the options: {name} is {saved.get(name, 'missing')} in the checkpoint and "
                f"{own.get(name, 'missing')} here; give the options it was trained with"
            )


def check_dictionary(model: torch.nn.Module, state_dict) -> None:
    """Raise FastDiSSError where an embedding of the checkpoint has another number of tokens, or the
    checkpoint of a FastDiSS model was trained with other words.  Older ones do not say which."""
    for name, parameter in model.state_dict().items():
        saved = state_dict.get(name)
        table = "embed" in name and "position" not in name and "project" not in name and parameter.dim() == 2
        if table and saved is not None and saved.shape[1:] == parameter.shape[1:]:
            if len(saved) != len(parameter):
                raise FastDiSSError(
                    f"the dictionary does not fit the checkpoint: the dictionary has {len(parameter)} "
                    f"types, the checkpoint {len(saved)} ({name})"
                )
    if isinstance(model, FewStepModel):
        own = model.dictionary_versions
        saved = state_dict.setdefault("dictionary_versions", state_dict.pop("dictionaries", own))  # its former name
        if not torch.equal(saved.cpu(), own.cpu()):
            raise FastDiSSError(
                "the dictionary does not fit the checkpoint: it has as many types as the one trained with, "
                "but other words or another order"
            )
