"""The FastDiSS model for fairseq: encoder, latent embedding, denoiser and length predictor."""

import contextlib
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq.models import BaseFairseqModel, register_model

from ..compat import FastDiSSError, bfloat16, int8_linears
from ..diffusion.process import Process
from ..diffusion.training import TrainingPass, TrainingPlan, training_pass
from ..modules.denoiser import Denoiser, Memory, Target
from ..modules.embedding import LatentEmbedding, Positions, ProjectedEmbedding, ScaledEmbedding
from ..modules.encoder import Encoder
from ..modules.length import LengthPredictor
from ..modules.rounding import mean_rows, nearest_token, rounding_loss
from ..modules.transformer import LayerConfig
from .config import ARCHITECTURES, FastDiSSConfig, architecture_config, check_probability


class Source(NamedTuple):
    """An encoded source: ``memory`` for the denoiser, ``length_logits`` (B, offsets) float32,
    ``lengths`` (B,) of the source."""

    memory: Memory
    length_logits: Tensor
    lengths: Tensor


class TrainingOutput(NamedTuple):
    """What the criterion needs: ``z_0`` (B, T, D); the training pass; ``rounding_loss`` and ``correct``
    (B, T), zero at padding, at the estimate (anchor) or at z_0 (exact); ``length_loss`` (B,)."""

    z_0: Tensor
    training: TrainingPass
    rounding_loss: Tensor
    correct: Tensor
    length_loss: Tensor


class FastDiSSModel(BaseFairseqModel):
    """Continuous diffusion on target embeddings, conditioned on an encoded source.

    Args:
        cfg: the options.
        source_dictionary, target_dictionary: fairseq dictionaries.
    """

    def __init__(self, cfg: FastDiSSConfig, source_dictionary, target_dictionary):
        super().__init__()
        self.cfg, self.padding_idx = cfg, target_dictionary.pad()
        self.process = Process(str(cfg.noise_schedule), cfg.noise_factor)
        self.num_updates = 0
        checksums = [fingerprint(words) for words in (source_dictionary, target_dictionary)]
        self.register_buffer("dictionary_versions", torch.tensor(checksums))  # fairseq's EMA leaves "version"s alone
        self.embedding = LatentEmbedding(len(target_dictionary), cfg.latent_dim)
        self.encoder = self._build_encoder(source_dictionary)
        positions = Positions(cfg.max_target_positions, cfg.decoder_embed_dim, cfg.decoder_learned_pos)
        layer = self.layer_config("decoder")
        self.denoiser = Denoiser(layer, cfg.decoder_layers, cfg.latent_dim, positions)
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
            FastDiSSError: a bundle with a file that is not the one exported.
        """
        from ..bundle import Bundle  # above the models: it knows how to decode

        bundle = Bundle(model_name_or_path) if Bundle.is_at(model_name_or_path) else None
        known = bundle.task_options() if bundle else {}
        interface = super().from_pretrained(
            str(model_name_or_path), checkpoint_file, data_name_or_path, **{**known, **kwargs}
        )
        if bundle:
            interface.tokenizer, interface.bpe = bundle.text_codecs()
        return interface

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
        """Called by fairseq before each update; MANS and the noise depend on it."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    def max_positions(self):
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    def precision(self, device: torch.device):
        """The context the networks run in: bfloat16 autocast where the options ask for it."""
        if str(self.cfg.autocast) == "bf16":
            return bfloat16(device)
        return contextlib.nullcontext()

    def quantise(self) -> None:
        """Make the linear layers of all transformer layers int8, for decoding on a CPU."""
        for layers in (self.encoder.layers, self.denoiser.layers):
            int8_linears(layers)

    def encode(self, src_tokens: Tensor) -> Source:
        """Encode (B, S) ids; sources longer than the model's positions are cut."""
        src_tokens = cut(src_tokens, self.cfg.max_source_positions)
        mask = src_tokens.ne(self.padding_idx)
        with self.precision(src_tokens.device):
            states = self.encoder(src_tokens, mask)
            logits = self.length(states, mask)
            return Source(self.denoiser.memory(states, mask), logits, mask.sum(1))

    def denoise(self, z: Tensor, t: Tensor, z_bar: Tensor, target: Target, memory: Memory) -> Tensor:
        """One network evaluation; shapes as in :class:`Denoiser`, z at its natural scale."""
        scale = self.process.input_scale(t).unsqueeze(-1)
        with self.precision(z.device):
            return self.denoiser(z * scale, t, z_bar, target, memory)

    def refine(self, estimate: Tensor, mask: Tensor, how: str) -> Tensor:
        """What solvers and self-conditioning get for network estimates (..., T, D): the same
        (``direct``), or ``expected`` or nearest (``rounded``) token embeddings, zero outside the mask."""
        if how == "direct":
            return estimate
        states, table = self.rounded(estimate[mask])
        rows = mean_rows(states, table) if how == "expected" else table[nearest_token(states, table)]
        return torch.zeros_like(estimate).index_put((mask,), rows.type_as(estimate))

    def rounded(self, z: Tensor):
        """z (N, D) and the table (V, D) in the precision that logits are computed in."""
        table = self.embedding.table()
        dtype = torch.bfloat16 if str(self.cfg.autocast) == "bf16" else table.dtype
        return z.to(dtype), table.to(dtype)

    def forward(self, src_tokens: Tensor, target: Tensor, plan: TrainingPlan) -> TrainingOutput:
        """One training step; the only entry, so that data parallel sees every gradient.

        Args:
            src_tokens: (B, S) ids.
            target: (B, T) ids with padding on the right, at most ``max_target_positions`` long.
        """
        source = self.encode(src_tokens)
        mask = target.ne(self.padding_idx)
        z_0, shared = self.embedding(target), self.denoiser.target(mask)

        def denoise(z, t, z_bar, rows):
            if rows is None:
                return self.denoise(z, t, z_bar, shared, source.memory)
            return self.denoise(z, t, z_bar, shared.select(rows), source.memory.select(rows))

        def is_correct(estimate):
            states, table = self.rounded(estimate[mask])
            return torch.zeros_like(mask).masked_scatter(mask, nearest_token(states, table) == target[mask])

        def refine(estimate, rows):
            return self.refine(estimate, mask[rows], plan.estimate)

        training = training_pass(denoise, is_correct, z_0, mask, plan, self.process, refine)
        states, table = self.rounded((training.estimate if plan.rounding == "anchor" else z_0)[mask])
        rounding = rounding_loss(states, table, target[mask], plan.label_smoothing)
        return TrainingOutput(
            z_0,
            training,
            torch.zeros_like(mask, dtype=torch.float).masked_scatter(mask, rounding.loss),
            torch.zeros_like(mask).masked_scatter(mask, rounding.correct),
            self.length.loss(source.length_logits, source.lengths, mask.sum(1)),
        )


def cut(tokens: Tensor, limit: int) -> Tensor:
    """The first ``limit`` columns of right-padded tokens (B, S)."""
    return tokens[:, :limit]


#: Options that count something.
SIZES = (
    "latent_dim",
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
    for name in SIZES:
        if getattr(cfg, name) < 1:
            raise FastDiSSError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(cfg, name)}")
    for side in ("encoder", "decoder"):
        if getattr(cfg, f"{side}_embed_dim") % (2 * getattr(cfg, f"{side}_attention_heads")):
            raise FastDiSSError(f"--{side}-embed-dim must be a multiple of twice --{side}-attention-heads")
    if not cfg.noise_factor > 0:
        raise FastDiSSError(f"--noise-factor must be positive, not {cfg.noise_factor}")


def fingerprint(dictionary) -> int:
    """A checksum of a dictionary's words and their order, below 2^32."""
    return zlib.crc32("\n".join(dictionary.symbols).encode("utf-8", "surrogateescape"))


def check_weights(model: torch.nn.Module, state_dict) -> None:
    """Raise FastDiSSError where a checkpoint does not fit the dictionaries, or a FastDiSS model's options."""
    check_dictionary(model, state_dict)
    if not isinstance(model, FastDiSSModel):
        return
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
        table = "embed" in name and "position" not in name and parameter.dim() == 2
        if table and saved is not None and saved.shape[1:] == parameter.shape[1:]:
            if len(saved) != len(parameter):
                raise FastDiSSError(
                    f"the dictionary does not fit the checkpoint: the dictionary has {len(parameter)} "
                    f"types, the checkpoint {len(saved)} ({name})"
                )
    if isinstance(model, FastDiSSModel):
        own = model.dictionary_versions
        saved = state_dict.setdefault("dictionary_versions", state_dict.pop("dictionaries", own))  # its former name
        if not torch.equal(saved.cpu(), own.cpu()):
            raise FastDiSSError(
                "the dictionary does not fit the checkpoint: it has as many types as the one trained with, "
                "but other words or another order"
            )


for _name in ARCHITECTURES:
    register_model(_name, dataclass=architecture_config(_name))(type(_name, (FastDiSSModel,), {}))
