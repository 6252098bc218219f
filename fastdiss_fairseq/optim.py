"""Adam in one kernel: ``--optimizer fused_adam``."""

import torch
from torch import Tensor

from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig

from .errors import FastDiSSError


class FusedAdamW(torch.optim.AdamW):
    """Takes the state of fairseq's Adam, too, which fairseq lets through in half precision."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["fused"] = True
        for p, state in self.state.items():
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float, device=p.device)


@register_optimizer("fused_adam", dataclass=FairseqAdamConfig)
class FusedAdam(FairseqAdam):
    """torch's AdamW, all parameters together; its options are those of ``--optimizer adam``.

    fairseq's own Adam, the same up to where epsilon is added, goes through the parameters one by one unless NVIDIA apex is
    installed: some 1,500 small kernels an update of a model with 160 of them.  So does its clipping of gradients.

    Raises:
        FastDiSSError: ``--fp16-adam-stats``, or a torch without a fused AdamW (before 2.0; on a CPU before 2.4).
    """

    supports_flat_params = True

    def __init__(self, cfg: FairseqAdamConfig, params):
        FairseqOptimizer.__init__(self, cfg)
        if cfg.fp16_adam_stats:
            raise FastDiSSError("--fp16-adam-stats is not for --optimizer fused_adam")
        try:
            self._optimizer = FusedAdamW(params, fused=True, **self.optimizer_config)
        except (RuntimeError, TypeError) as error:
            raise FastDiSSError(f"--optimizer fused_adam needs a newer torch: {error}") from None

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        raise FastDiSSError(
            "--memory-efficient-fp16 is not for --optimizer fused_adam, which computes in the weights' precision"
        )

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn=None) -> Tensor:
        """Scale the gradients to a norm of at most ``max_norm``, where it is above 0; returns the norm before."""
        if aggregate_norm_fn is not None:
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        return torch.nn.utils.clip_grad_norm_(list(self.params), max_norm if max_norm > 0 else float("inf"))
