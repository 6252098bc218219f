"""The one module that knows which fairseq, torch and numpy are installed."""

import argparse
import collections
import contextlib
import functools
import inspect
import math
import os
import sys
import typing
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq.tasks.fairseq_task import StatefulContainer

from .errors import FastDiSSError

#: Version of ONNX' operators: the newest that torch 1.12 writes.
OPSET = 16


def device(args) -> torch.device:
    """The device a command runs on: a GPU where there is one, unless ``args.cpu`` says otherwise."""
    return torch.device("cpu" if args.cpu or not torch.cuda.is_available() else "cuda")


def accept_any_bytes() -> None:
    """Let fairseq-interactive go on after a line that is not UTF-8: what cannot be read becomes U+FFFD."""
    if "interactive" in os.path.basename(sys.argv[0]) and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")


def allow_checkpoint_classes() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read fairseq checkpoints.

    Allowed are the plain containers that fairseq saves: argparse's Namespace (stock models), numpy
    arrays in the meters (``--eval-bleu``) and OmegaConf nodes (several processes).
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return
    dtypes = {type(np.dtype(name)) for name in ("i8", "i4", "u8", "f8", "f4", "b1")}
    torch.serialization.add_safe_globals(
        [argparse.Namespace, np.ndarray, np.dtype, *dtypes, *_array_makers(), *_configuration_classes()]
    )


def attend_without_cudnn() -> None:
    """Compute attention on a GPU by torch's own kernels.

    torch prefers cuDNN's in half precision on Hopper GPUs, which plan anew, on the host, for every number of sentences and every
    length; few are alike in a training on text, or in decoding it.  The switch is torch's, for the whole process.
    """
    if hasattr(torch.backends.cuda, "enable_cudnn_sdp"):
        torch.backends.cuda.enable_cudnn_sdp(False)


def _array_makers() -> list:
    """numpy's functions that make arrays from pickles, under the names of numpy 1 and numpy 2."""
    multiarray = (getattr(np, "_core", None) or np.core).multiarray
    return [
        (getattr(multiarray, function), f"numpy.{package}.multiarray.{function}")
        for package in ("core", "_core")
        for function in ("_reconstruct", "scalar")
    ]


def _configuration_classes() -> list:
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    return [
        DictConfig,
        ListConfig,
        ContainerMetadata,
        Metadata,
        AnyNode,
        typing.Any,
        dict,
        list,
        int,
        collections.defaultdict,
        _TensorPlaceholder,
    ]


def name_numpy_modules() -> None:
    """Let numpy before 1.26 read what numpy 2 saved, whose ``numpy.core`` is called ``numpy._core``."""
    try:
        import numpy._core.multiarray  # noqa: F401
    except ImportError:
        sys.modules["numpy._core"] = np.core
        sys.modules["numpy._core.multiarray"] = np.core.multiarray


def drop_duplicate_parameters() -> None:
    """Let newer fairseq read stock transformers (rerankers, baselines) that fairseq 0.12.2 saved.

    Its encoder layers save copies of their parameters, remade at each loading, which newer layers refuse.
    """
    layer = TransformerEncoderLayerBase
    if "_load_from_state_dict" in vars(layer):  # fairseq 0.12.2 remakes the copies here
        return

    def load(self, state_dict, prefix, *others):
        for name in ("in_proj", "out_proj", "fc1", "fc2"):
            for kind in ("weight", "bias"):
                state_dict.pop(f"{prefix}{name}_{kind}", None)
        super(layer, self)._load_from_state_dict(state_dict, prefix, *others)

    layer._load_from_state_dict = load


def bfloat16(device: torch.device):
    """Autocast to bfloat16.

    Raises:
        FastDiSSError: on a CPU with torch before 2.0, where layer norm has no gradient under autocast.
    """
    if device.type == "cpu" and not hasattr(F, "scaled_dot_product_attention"):
        raise FastDiSSError("--autocast bf16 on a CPU needs torch 2.0 or newer")
    return torch.autocast(device.type, dtype=torch.bfloat16)


def int8_linears(module: torch.nn.Module) -> None:
    """Replace the linear layers inside a module by dynamically quantised ones, for decoding on a CPU.

    Raises:
        FastDiSSError: the module is on a GPU or in half precision.
    """
    from torch.ao.quantization import quantize_dynamic

    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in module.parameters()):
        raise FastDiSSError("--decoding-int8 needs a CPU and float32 (no --fp16)")
    quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def export_graph(module: torch.nn.Module, inputs, file, names, sizes) -> None:
    """Trace a module and write it as an ONNX graph; ``sizes``: input name -> {dimension: name} of those that vary."""
    chosen = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        module,
        inputs,
        file,
        input_names=names,
        dynamic_axes=sizes,
        opset_version=OPSET,
        **chosen,
    )


def read_lazily(path) -> dict:
    """A checkpoint whose tensors are read where they are looked at: from torch 2.1 on, before at once."""
    lazily = {"mmap": True} if "mmap" in inspect.signature(torch.load).parameters else {}
    return torch.load(path, map_location="cpu", **lazily)


def compile_calls(module: torch.nn.Module) -> None:
    """Compile calls of a module, once for all sizes of a batch; nothing where they are compiled already.

    Raises:
        FastDiSSError: torch before 2.2.
    """
    if not hasattr(module, "compile"):
        raise FastDiSSError("--decoding-compile needs torch 2.2 or newer")
    if module._compiled_call_impl is None:
        module.compile(dynamic=True)


def before_loading(module: torch.nn.Module, check) -> None:
    """Call ``check(module, state_dict)`` before ``module.load_state_dict``, or that of a copy, looks at any shape."""
    module._register_load_state_dict_pre_hook(functools.partial(_first_two, check), with_module=True)


def _first_two(check, module: torch.nn.Module, state: dict, *rest) -> None:
    check(module, state)


def let_tasks_be_copied() -> None:
    """Let tasks be copied and pickled: fairseq asks a task's state for attributes before it has any, for ever."""
    StatefulContainer._state, StatefulContainer._factories = {}, {}


def name_all_paths(package_path: list) -> None:
    """Let ``--user-dir fastdiss_fairseq`` find the installed package after it has been imported.

    fairseq looks for a relative folder beside itself and then compares spellings, not folders.
    """
    import fairseq

    beside = os.path.join(os.path.dirname(fairseq.__file__), "..", os.path.basename(package_path[0]))
    if os.path.isdir(beside) and os.path.samefile(beside, package_path[0]):
        package_path.append(beside)


def _attention_by_hand(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor] = None, dropout_p: float = 0.0
) -> Tensor:
    """What torch 2.0's function of this name computes, for older torch and as a reference."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores.float(), dim=-1).type_as(value)
    return F.dropout(weights, dropout_p) @ value


def no_autocast(device: torch.device):
    """A context without autocast."""
    if device.type not in ("cpu", "cuda"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def kept_casts():
    """Around contexts of autocast: the weights that they cast are kept until its end, not only until theirs."""
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


@functools.lru_cache(maxsize=None)
def casts_have_gradients() -> bool:
    """Whether autocast's casts of weights that were made, and kept, where gradients were off serve where they are on;
    not in older torch (seen in 1.12), which loses the weights' gradients then."""
    weight, x = torch.ones(1, 1, requires_grad=True, device="cpu"), torch.ones(1, 1, device="cpu")
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            F.linear(x, weight)
        return F.linear(x, weight).requires_grad


def casts_for_gradients() -> None:
    """Before a pass with gradients: let go what passes without left that cannot serve it."""
    if torch.is_grad_enabled() and not casts_have_gradients():
        torch.clear_autocast_cache()


def capture(graph, **options):
    """The context in which a CUDA graph is recorded.  What other threads do meanwhile, such as those that pin a data
    loader's batches, does not end it, from torch 2.1 on."""
    if "capture_error_mode" in inspect.signature(torch.cuda.graph).parameters:
        options["capture_error_mode"] = "thread_local"
    return torch.cuda.graph(graph, **options)


_attention = getattr(F, "scaled_dot_product_attention", _attention_by_hand)


def attention_dtype(x: Tensor) -> torch.dtype:
    """What :func:`scaled_dot_product_attention` computes in where queries are linear in x."""
    if x.device.type == "cpu":
        return torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    if not torch.is_autocast_enabled():
        return x.dtype
    return torch.get_autocast_dtype("cuda") if hasattr(torch, "get_autocast_dtype") else torch.get_autocast_gpu_dtype()


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """torch's, in float32 where it runs on a CPU: its gradient in bfloat16 is ten times slower there."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return _attention(query, key, value, **options)
    with no_autocast(query.device):
        return _attention(query.float(), key.float(), value.float(), **options).type_as(query)
