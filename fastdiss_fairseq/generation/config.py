"""The options of decoding, resolved from wherever fairseq keeps them into one frozen object."""

from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Sequence, Union

from omegaconf import DictConfig

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.configs import GenerationConfig

from ..diffusion.process import Process
from ..diffusion.sampling import DECODING_SOLVERS, MASK_PREDICT, RENOISE, SELF_CONDITIONING, Sampler
from ..errors import FastDiSSError
from ..flow.jumps import JUMPS
from ..flow.path import Path
from ..flow.sampling import LAST_STEPS, FlowSampler
from ..models.config import option

#: Solvers of either family.
SOLVER_NAMES = (*DECODING_SOLVERS, *JUMPS)
CHOICES = ("score", "mbr", "ar")
#: What becomes of a token that is predicted several times in a row.
REPEATS = ("merge", "keep")
#: The first is the default.
ESTIMATES = ("expected", "direct", "rounded")
#: Estimates of either family.
ESTIMATE_NAMES = (*ESTIMATES, *LAST_STEPS)

#: By default the model is told of this many times the noise factor it was trained with (RESULTS.md,
#: "Solvers where all tokens have one time").
TOLD_RATIO = 2.0


@dataclass
class DecodingConfig(FairseqDataclass):
    """How to decode; the fields are options of the task."""

    decoding_steps: Optional[int] = option(
        None, "network evaluations K (default: --iter-decode-max-iter + 1, fairseq's convention)"
    )
    decoding_solver: Optional[ChoiceEnum(list(SOLVER_NAMES))] = option(
        None,
        f"how a step moves z (default: {MASK_PREDICT}: a step takes the tokens it is most certain of as known and "
        f"begins anew with the others; for it noise factors do not matter; of models trained with --mixed-times 0: {RENOISE}); "
        f"FS-DFM: how tokens jump (default: {FlowSampler.solver})",
    )
    decoding_noise_factor: Optional[float] = option(
        None, "noise factor of decoding (default: that of training); less sharpens"
    )
    decoding_told_noise_factor: Optional[float] = option(
        None,
        "noise factor that the time told to the model stands for: that of training tells it the grid "
        "time, --decoding-noise-factor's value the truth, more tells it of more noise than there is "
        f"(default: {TOLD_RATIO:g} times that of training)",
    )
    decoding_temperature: Optional[float] = option(
        None,
        "scale of the noise that decoding starts from (default: 1); FS-DFM: temperature of the words that tokens jump "
        f"to (default: {FlowSampler.temperature:g}, the likeliest; 1: drawn from the prediction)",
    )
    decoding_self_conditioning: Optional[ChoiceEnum(list(SELF_CONDITIONING))] = option(
        None,
        "condition on the last step's estimate (previous, the default), on one made anew (recompute, 2 K evaluations), or on "
        "none (the default of models trained with --self-conditioning-prob 0)",
    )
    decoding_estimate: Optional[ChoiceEnum(list(ESTIMATE_NAMES))] = option(
        None,
        "what the solver and self-conditioning get: the network's estimate (direct), the mean token embedding under "
        "its softmax (expected, the default), or the nearest token's embedding (rounded); FS-DFM: whether the last step "
        "takes the likeliest words (the default) or draws them (drawn)",
    )
    length_beam: Optional[int] = option(None, "candidate lengths a sentence (default: --iter-decode-with-beam)")
    noise_beam: int = option(1, "noise seeds a length")
    decoding_repeats: ChoiceEnum(list(REPEATS)) = option(
        "merge",
        "of a token that comes several times in a row, keep one (merge, before candidates are chosen) or all (keep: where "
        "words do repeat, as Chinese characters); tokens without a letter are always kept",
    )
    decoding_length_factor: float = option(
        1.0, "multiply the candidate lengths by this: with merged repeats, about 1.06 is better for K = 1 to 3"
    )
    decoding_choice: ChoiceEnum(list(CHOICES)) = option(
        "score",
        "choose among candidates by log-probability per token (that of the length included), by MBR (BLEU between candidates), or by an "
        "autoregressive model given as second --path entry (also: --iter-decode-with-external-reranker)",
    )
    early_exit: bool = option(False, "skip steps of a sentence, or stop it, once they change no token")
    decoding_int8: bool = option(False, "on a CPU: int8 linear layers (dynamic quantisation)")
    decoding_bf16: bool = option(
        False,
        "decode with weights in bfloat16: faster where the processor computes with it (solvers' state stays float32)",
    )
    decoding_compile: bool = option(
        False, "compile the network's step with torch.compile: the first batches take longer, the others less"
    )
    decoding_cuda_graphs: bool = option(
        False,
        "on a GPU: record the kernels of small batches, once for each size, and replay them: the first batch of a size takes "
        "longer, the others much less (not with --early-exit and histories)",
    )
    decoding_onnx: bool = option(False, "on a CPU: evaluate the networks with ONNX Runtime, in float32 (FastDiSS only)")


#: Options that change a model, so of the task alone: a request has no say in them.
MODEL_OPTIONS = ("decoding_int8", "decoding_bf16", "decoding_compile", "decoding_cuda_graphs", "decoding_onnx")
#: The same, as the tools name them.
DEPLOYMENTS = tuple(name.replace("decoding_", "") for name in MODEL_OPTIONS)
#: Of these, the ones that get ready for each size of a batch anew.
SIZE_BY_SIZE = ("compile", "cuda_graphs")


def decoding_defaults() -> dict:
    """The default of each decoding option, whatever a checkpoint was trained with."""
    return {f.name: f.default for f in fields(DecodingConfig) if not f.name.startswith("_")}


@dataclass(frozen=True)
class Decoding:
    """A decoding request, complete and checked."""

    steps: int
    sampler: Any  # a Sampler, or FS-DFM's FlowSampler
    estimate: str
    length_beam: int
    noise_beam: int
    repeats: str
    length_factor: float
    choice: str
    early_exit: bool
    history: bool
    seed: int

    def __str__(self):
        count = self.length_beam * self.noise_beam
        beams = f"{count} candidates ({self.length_beam} lengths x {self.noise_beam} seeds), choice by {self.choice}"
        return f"K = {self.steps}, {self.sampler.solver}, {beams if count > 1 else '1 candidate'}"


def resolve(task_cfg, request, trained: Union[Process, Path], presets: Mapping[str, str]) -> Decoding:
    """Join the task's options with a request.

    Args:
        task_cfg: the task's configuration, which holds the fields of :class:`DecodingConfig`.
        request: fairseq's GenerationConfig, or the Namespace of ``--eval-bleu-args``; where it has a
            field of :class:`DecodingConfig`, or a ``seed`` of the noise, that goes before the task's.
        trained: the process, or path, the model was trained on.
        presets: the model's own values of options that are not given.

    Raises:
        FastDiSSError: an unknown option (fairseq's hub interface adds any to its GenerationConfig), or a value of another
            kind or out of its range.
    """
    names = map(str, request) if isinstance(request, DictConfig) else vars(request)
    _check({name: getattr(request, name) for name in names})
    stock = GenerationConfig()

    def value(name):
        source = next(place for place in (request, task_cfg, stock) if hasattr(place, name))
        return presets.get(name) if getattr(source, name) is None else getattr(source, name)

    def given(name, otherwise):
        return otherwise if value(name) is None else value(name)

    family = FAMILIES[type(trained)]
    try:
        sampler = family.sampler(trained, value, given)
    except ValueError as error:
        raise FastDiSSError(str(error)) from None
    rerank = value("iter_decode_with_external_reranker")
    return Decoding(
        steps=positive("--decoding-steps", given("decoding_steps", value("iter_decode_max_iter") + 1)),
        sampler=sampler,
        estimate=_known("estimate", str(given("decoding_estimate", family.estimates[0])), family.estimates),
        length_beam=positive("--length-beam", given("length_beam", value("iter_decode_with_beam"))),
        noise_beam=positive("--noise-beam", value("noise_beam")),
        repeats=_known("treatment of repeats", str(value("decoding_repeats")), REPEATS),
        length_factor=_above_zero("--decoding-length-factor", value("decoding_length_factor")),
        choice=_known("choice", "ar" if rerank else str(value("decoding_choice")), CHOICES),
        early_exit=value("early_exit") and not value("iter_decode_force_max_iter"),
        history=value("retain_iter_history") or value("print_step"),
        seed=_seed(getattr(request, "seed", task_cfg.seed)),
    )


#: What counts of fairseq's options of generation; others belong to beam search.
COUNTING = (
    *("iter_decode_max_iter", "iter_decode_with_beam", "iter_decode_force_max_iter"),
    *("iter_decode_with_external_reranker", "retain_iter_history", "print_step", "nbest"),
    *("sacrebleu", "no_seed_provided", "retain_dropout", "retain_dropout_modules"),  # read by fairseq itself
)


_NOISE_FACTORS = ("decoding_noise_factor", "decoding_told_noise_factor")
#: Options that a solver does not read, or hardly: from pure noise at t = 1, all but nothing at the network's scale,
#: mask_predict writes the same text nearly always.
UNREAD = {
    MASK_PREDICT: (*_NOISE_FACTORS, "decoding_temperature", "noise_beam"),
    **dict.fromkeys(JUMPS, (*_NOISE_FACTORS, "decoding_self_conditioning")),
}


def without_effect(task_cfg, request, decoding: Decoding) -> List[str]:
    """Names of the options that were given, but change nothing, or next to nothing, of this decoding."""
    stock = {f.name: f.default for f in fields(GenerationConfig) if f.name not in COUNTING}
    found = [name for name, default in stock.items() if getattr(request, name, default) != default]
    if decoding.choice != "score" and decoding.length_beam * decoding.noise_beam == 1:
        found.append("decoding_choice")
    ours = decoding_defaults()
    for name in UNREAD.get(decoding.sampler.solver, ()):
        if str(getattr(request, name, getattr(task_cfg, name, ours[name]))) != str(ours[name]):
            found.append(name)
    return found


def continuous_sampler(trained: Process, value: Callable, given: Callable) -> Sampler:
    """FastDiSS' sampler; ``value(name)`` is an option, ``given(name, otherwise)`` one that may be None."""
    return Sampler(
        trained=trained,
        noise_factor=given("decoding_noise_factor", trained.noise_factor),
        told_noise_factor=given("decoding_told_noise_factor", TOLD_RATIO * trained.noise_factor),
        temperature=given("decoding_temperature", Sampler.temperature),
        solver=str(value("decoding_solver")),
        self_conditioning=str(value("decoding_self_conditioning")),
    )


def flow_sampler(trained: Path, value: Callable, given: Callable) -> FlowSampler:
    """FS-DFM's sampler; as :func:`continuous_sampler`.

    Raises:
        ValueError: early exit, since a step that changes nothing says nothing of the next.
    """
    if value("early_exit"):
        raise ValueError("--early-exit is for FastDiSS: FS-DFM's tokens may jump after a step without a change")
    return FlowSampler(
        path=trained,
        solver=str(value("decoding_solver")),
        temperature=given("decoding_temperature", FlowSampler.temperature),
        last=str(given("decoding_estimate", FlowSampler.last)),
    )


class Family(NamedTuple):
    """How a family of models decodes: its sampler, and its ``estimates``, the default first."""

    sampler: Callable
    estimates: Sequence[str]


FAMILIES = {Process: Family(continuous_sampler, ESTIMATES), Path: Family(flow_sampler, LAST_STEPS)}


def positive(flag: str, value) -> int:
    """``value`` as an int of at least 1, or FastDiSSError naming ``flag``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise FastDiSSError(f"{flag} must be a whole number of at least 1, not {value!r}")
    return int(value)


def _seed(value) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not -(2**63) <= int(value) < 2**63:
        raise FastDiSSError(f"seed must be a whole number of at most 64 bits, not {value!r}")
    return int(value)


def _above_zero(flag: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise FastDiSSError(f"{flag} must be a number above 0, not {value!r}")
    return float(value)


def _known(kind: str, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise FastDiSSError(f"unknown {kind} '{name}' (known: {', '.join(names)})")
    return name


#: What a number may be, by the type of its option.
NUMBERS = {float: (float, int), Optional[float]: (float, int, type(None))}


def _check(given: dict) -> None:
    """Raise FastDiSSError where a request has an unknown name, or a value of another kind."""
    known = {"seed", *(f.name for kind in (DecodingConfig, GenerationConfig) for f in fields(kind))} - set(
        MODEL_OPTIONS
    )
    of_models = sorted(set(given) & set(MODEL_OPTIONS))
    if of_models:
        raise FastDiSSError(
            f"{', '.join(of_models)} changes the model, so it is an option of fairseq's commands and of from_pretrained, "
            "not of a request"
        )
    unknown = sorted(set(given) - known)
    if unknown:
        raise FastDiSSError(f"unknown generation option: {', '.join(unknown)}")
    for field in fields(DecodingConfig):
        value = given.get(field.name)
        if field.type is bool and not isinstance(value, (bool, type(None))):
            raise FastDiSSError(f"{field.name} must be True or False, not {value!r}")
        if field.type in NUMBERS and not isinstance(given.get(field.name, field.default), NUMBERS[field.type]):
            raise FastDiSSError(f"{field.name} must be a number, not {value!r}")
