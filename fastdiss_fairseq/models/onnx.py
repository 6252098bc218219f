"""The networks of a FastDiSS model as ONNX graphs, evaluated by ONNX Runtime on a CPU.

Its kernels and its single call for a whole network make small evaluations several times as fast as torch's
(RESULTS.md, "Speed").  The graphs are traced when decoding begins and kept in memory.
"""

import io
import warnings
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from ..compat import export_graph
from ..errors import FastDiSSError
from ..modules.rounding import Reading, Vocabulary, in_pieces, read_piece
from ..modules.target import Memory, Target
from ..modules.transformer import Layout, attention_bias

#: Sizes that differ from call to call, by the letters that stand for them below.
SIZES = {
    "B": "targets",
    "T": "target_positions",
    "N": "real_positions",
    "P": "all_positions",
    "S": "sources",
    "L": "source_positions",
}


class Graph:
    """A network as an ONNX graph.

    Args:
        network: called with tensors, gives a tuple of tensors.
        inputs: name -> (example, letters of its dimensions, ``.`` for a constant one); see :data:`SIZES`.
    """

    def __init__(self, network: nn.Module, inputs: Dict[str, Tuple[Tensor, str]]):
        import onnxruntime

        sizes = {
            name: {i: SIZES[letter] for i, letter in enumerate(letters) if letter in SIZES}
            for name, (_, letters) in inputs.items()
        }
        file = io.BytesIO()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python values that become constants: all are constant
            export_graph(network.eval(), tuple(example for example, _ in inputs.values()), file, list(inputs), sizes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        options.enable_mem_pattern = False  # it keeps one for each size
        self.session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> List[Tensor]:
        arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in zip(self.names, inputs)}
        return [torch.from_numpy(array) for array in self.session.run(None, arrays)]


class Encode(nn.Module):
    """ids (S, L) -> length logits, then keys and values of each layer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        source = self.model.encode(tokens)
        return (source.length_logits, *source.memory.flat()[1:])


class Denoise(nn.Module):
    """One evaluation, of what :meth:`OnnxRuntime.denoise` gets, with the tuples of tensors laid flat."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z, time_features, z_bar, mask, index, places, positions, bias, *memory):
        target = Target(Layout(mask, index, places), positions, bias)
        return (self.denoiser(z, time_features, z_bar, target, Memory.of(*memory)),)


class Read(nn.Module):
    """Estimates (N, D) -> tokens, log-probabilities and, where they are asked for, mean rows: :func:`~..modules.rounding.read`."""

    def __init__(self, vocabulary: Vocabulary, mean: bool):
        super().__init__()
        self.vocabulary, self.mean = vocabulary, mean

    def forward(self, states):
        return tuple(part for part in read_piece(states, self.vocabulary, self.mean) if part is not None)


class OnnxRuntime:
    """Stands in for a FastDiSS model's networks while it decodes.

    Args:
        model: in float32 on a CPU.
        never: ids that are never read.

    Raises:
        FastDiSSError: a model elsewhere or otherwise, or packages that are not installed.
    """

    def __init__(self, model, never: Sequence[int]):
        check(model)
        self.padding = model.padding_idx
        tokens = torch.tensor([[5, 6, 7, 2], [5, 2, self.padding, self.padding]])
        self.encoder = Graph(Encode(model), {"tokens": (tokens, "SL")})
        self.denoiser = Graph(Denoise(model.denoiser), self._example(model, tokens))
        with torch.no_grad():
            self.table = model.table()
        vocabulary, states = Vocabulary.of(self.table, never), torch.randn(3, model.cfg.latent_dim)
        self.readers = {mean: Graph(Read(vocabulary, mean), {"states": (states, "N.")}) for mean in (False, True)}

    def _example(self, model, tokens: Tensor) -> Dict[str, Tuple[Tensor, str]]:
        """Two candidates of each of two sentences, of unequal lengths, so that nothing is taken for constant."""
        with torch.no_grad():
            source = model.encode(tokens)
            mask = torch.arange(5) < torch.tensor([[5], [4], [3], [2]])
            target, time_features = model.denoiser.target(mask), model.denoiser.time(mask.float())
        z, z_bar = torch.randn(2, *mask.shape, model.cfg.latent_dim)
        fixed = {
            "z": (z, "BT."),
            "time_features": (time_features, "BT."),
            "z_bar": (z_bar, "BT."),
            "mask": (mask, "BT"),
            "index": (target.layout.index, "N"),
            "places": (target.layout.places, "P"),
            "positions": (target.positions, "N."),
            "bias": (target.bias, "B..T"),
            "source_bias": (source.memory.bias, "S..L"),
        }
        parts = source.memory.flat()[1:]
        return {**fixed, **{f"memory_{i}": (part, "S.L.") for i, part in enumerate(parts)}}

    def encode(self, tokens: Tensor) -> Tuple[Tensor, Memory]:
        """Length logits and memory of ids (S, L)."""
        logits, *parts = self.encoder(tokens)
        return logits, Memory.of(attention_bias(tokens.ne(self.padding), self.table), *parts)

    def denoise(self, z: Tensor, time_features: Tensor, z_bar: Tensor, target: Target, memory: Memory) -> Tensor:
        """As the denoiser."""
        (mask, index, places), positions, bias = target
        if index is None:
            index = places = torch.arange(mask.numel())
            positions = positions.flatten(0, 1)
        time_features = time_features.expand(*mask.shape, -1)
        return self.denoiser(z, time_features, z_bar, mask, index, places, positions, bias, *memory.flat())[0]

    def read(self, states: Tensor, mean: bool) -> Reading:
        """:func:`~..modules.rounding.read` with the model's table."""
        if not len(states):  # ONNX Runtime reduces an empty array along another dimension
            return Reading(torch.zeros(0, dtype=torch.long), torch.zeros(0), states if mean else None)
        tokens, log_probs, *rows = map(torch.cat, zip(*(self.readers[mean](piece) for piece in in_pieces(states))))
        return Reading(tokens, log_probs, rows[0] if mean else None)


def check(model) -> None:
    """Raise FastDiSSError unless ONNX Runtime is there and the model can be given to it."""
    try:
        import onnx  # noqa: F401  (torch's export needs it)
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise FastDiSSError(
            f"--decoding-onnx needs onnx and onnxruntime (pip install onnx onnxruntime): {error}"
        ) from None
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        raise FastDiSSError("--decoding-onnx needs a CPU and float32 (no --fp16)")
