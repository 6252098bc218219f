"""FastDiSS for fairseq: few-step continuous diffusion for sequence-to-sequence text.

Importing the package registers the task ``fastdiss``, the architectures ``fastdiss_*`` and ``fsdfm_*`` and the
criterions ``fastdiss_loss`` and ``fsdfm_loss``, and the optimizer ``fused_adam``; ``--user-dir fastdiss_fairseq`` does it on the command line.
"""

import logging

_root = logging.getLogger()
_level, _handlers = _root.level, list(_root.handlers)

from . import compat, errors, safety  # noqa: E402

errors.install_error_hook()
errors.drop_damaged_data_quietly()
compat.accept_any_bytes()
safety.guard_training()
compat.name_numpy_modules()
compat.allow_checkpoint_classes()
compat.attend_without_cudnn()
compat.drop_duplicate_parameters()
compat.let_tasks_be_copied()
compat.name_all_paths(__path__)

from . import criterions, models, optim, tasks  # noqa: E402,F401  (registration)
from .errors import FastDiSSError  # noqa: E402,F401
from .translator import FastDiSS  # noqa: E402,F401

_root.setLevel(_level)  # a module of fairseq makes the root logger of whoever imports it print everything
_root.handlers[:] = _handlers

__version__ = "0.1.0"
