"""What scripts import sooner or later, imported once for all ranks that are forked afterwards (`warm_ranks.py`)."""

import contextlib
import io
import os

if "PRETENDED_GPUS" not in os.environ:
    os.environ["DS_ACCELERATOR"] = "cpu"
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  ZeRO's, and with it PyTorch's compiler: seconds
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torch.distributed.checkpoint  # noqa: F401
    import torch.distributed.pipelining  # noqa: F401
    import torch.utils.cpp_extension  # noqa: F401
    from transformers import BertForQuestionAnswering, BertForSequenceClassification, GPT2LMHeadModel, Trainer  # noqa: F401

    import measurement.run  # noqa: F401
    import workload.models.encoder_classifier  # noqa: F401
