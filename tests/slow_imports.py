"""What a script imports sooner or later, imported once for all ranks that are forked from here (`warm_ranks.py`)."""

import contextlib
import io
import os

os.environ["DS_ACCELERATOR"] = "cpu"
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    import deepspeed  # noqa: F401
    import torch.distributed.pipelining  # noqa: F401
    from transformers import BertForQuestionAnswering, BertForSequenceClassification, GPT2LMHeadModel, Trainer  # noqa: F401

    import measurement.run  # noqa: F401
    import workload.encoder_classifier  # noqa: F401
