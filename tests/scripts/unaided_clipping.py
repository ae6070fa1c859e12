"""`pipeline.py` with its clipping left to DeepSpeed, which the equivalence test must notice."""

import pipeline
from workload import optimization
from workload.errors import one_line_errors

complete_config, clip_by_global_norm = pipeline.complete_config, optimization.clip_by_global_norm


def config_that_clips(config, arguments, *rest):
    return complete_config(config, arguments, *rest) | {"gradient_clipping": arguments.max_grad_norm}


pipeline.complete_config = config_that_clips
optimization.clip_by_global_norm = lambda parameters, _, group: clip_by_global_norm(parameters, float("inf"), group)

if __name__ == "__main__":
    with one_line_errors():
        pipeline.main()
