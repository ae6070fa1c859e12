"""How tensor parallelism splits the transformer layers of a family: which linear layers by columns, which by rows.

`workload.models.families` names the plan of each family. A linear layer split by columns makes some of the outputs
on each device: the queries, keys and values of its heads, or its part of the feed-forward network's middle. The layer
after it, split by rows, takes these as inputs; its outputs are sums over the devices.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PretrainedConfig

from workload.argument_checks import divisors
from workload.errors import InputError


@dataclass(frozen=True)
class TensorPlan:
    """The modules that a plan speaks of, by their names in a transformer layer.

    Args:
        columns, rows: linear layers that are split.
        norms: LayerNorms. Every device holds them whole.
        dropouts: of the layer's hidden states. Those of attention weights are not among them.
        shared_input: the module whose input several of `columns` take; None where each takes its own.
        fused: the one of `columns` that makes queries, keys and values in one product, if any.
        divided: an attribute by which the layer's own code takes that product apart: a device has only a part of it.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    norms: tuple[str, ...]
    dropouts: tuple[str, ...]
    shared_input: str | None = None
    fused: str | None = None
    divided: str | None = None

    def replicated_dropouts(self, model: nn.Module, layers: dict[str, nn.Module],
                            shares_tokens: bool) -> list[nn.Module]:
        """The dropouts of activations that every device holds whole.

        Args:
            layers: the model's transformer layers.
            shares_tokens: whether each device has its own tokens between the shared layers (sequence parallelism).
        """
        within = {module for layer in layers.values() for module in layer.modules()}
        outside = [module for module in model.modules() if isinstance(module, nn.Dropout) and module not in within]
        return outside + [layer.get_submodule(name) for layer in layers.values() for name in self.dropouts
                          if not shares_tokens]


BERT = TensorPlan(columns=("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"),
                  rows=("attention.output.dense", "output.dense"),
                  norms=("attention.output.LayerNorm", "output.LayerNorm"),
                  dropouts=("attention.output.dropout", "output.dropout"), shared_input="attention.self")
ENCODER_CLASSIFIER = TensorPlan(columns=("query_key_value", "feed_forward.0"),
                                rows=("attention_output", "feed_forward.2"),
                                norms=("attention_norm", "feed_forward_norm"), dropouts=("dropout",),
                                fused="query_key_value", divided="heads")
GPT2 = TensorPlan(columns=("attn.c_attn", "mlp.c_fc"), rows=("attn.c_proj", "mlp.c_proj"), norms=("ln_1", "ln_2"),
                  dropouts=("attn.resid_dropout", "mlp.dropout"), fused="attn.c_attn", divided="attn.split_size")


@dataclass(frozen=True)
class Arrangement:
    """How a parameter differs from the one of its name in the Hugging Face model.

    Args:
        is_transposed: a `Linear` takes the place of a `Conv1D`, whose weight is (inputs, outputs).
        devices: over which the outputs of a fused product are split, else 1. Its rows are then ordered by device,
            and for each device by query, key and value.
    """

    is_transposed: bool = False
    devices: int = 1

    def arrange(self, tensor: Tensor) -> Tensor:
        """From Hugging Face's arrangement: a weight (outputs, inputs) or (inputs, outputs), or a bias (outputs,)"""
        tensor = tensor.t() if self.is_transposed else tensor
        if self.devices > 1:
            tensor = tensor.unflatten(0, (3, self.devices, -1)).transpose(0, 1).flatten(0, 2)
        return tensor.contiguous()

    def put_back(self, tensor: Tensor) -> Tensor:
        """To Hugging Face's arrangement: a whole weight (outputs, inputs), or a bias (outputs,)"""
        if self.devices > 1:
            tensor = tensor.unflatten(0, (self.devices, 3, -1)).transpose(0, 1).flatten(0, 2)
        return (tensor.t() if self.is_transposed else tensor).contiguous()


def arrange_layers(layers: dict[str, nn.Module], plan: TensorPlan, devices: int) -> dict[str, Arrangement]:
    """Make transformer layers such that contiguous parts of their tensors can go to `devices`.

    Args:
        layers: under their names in the model, still whole; changed in place.

    Returns:
        The arrangement of each parameter that was changed, by its name in the model.
    """
    changed = {}
    for prefix, layer in layers.items():
        for name in (*plan.columns, *plan.rows):
            module = layer.get_submodule(name)
            is_transposed = not isinstance(module, nn.Linear)
            arrangement = Arrangement(is_transposed, devices if name == plan.fused else 1)
            if arrangement == Arrangement():
                continue
            weight, bias = (arrangement.arrange(getattr(module, key).detach()) for key in ("weight", "bias"))
            linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
            layer.set_submodule(name, linear)
            # A bias has one dimension, which transposing leaves as it is.
            changed |= {f"{prefix}.{name}.{key}": arrangement for key in ("weight", "bias")}
        if plan.divided:
            owner, _, attribute = plan.divided.rpartition(".")
            module = layer.get_submodule(owner)
            setattr(module, attribute, getattr(module, attribute) // devices)
    return changed


def fitting_groups(config: PretrainedConfig, devices: int) -> list[int]:
    """The sizes of tensor groups that heads, the feed-forward network's middle and the devices can be divided by."""
    wholes = config.num_attention_heads, _middle(config), devices
    return [number for number in range(1, devices + 1) if not any(whole % number for whole in wholes)]


def _middle(config: PretrainedConfig) -> int:
    """Width of the feed-forward network's middle."""
    return getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size


def check_tensor_group(model: str, config: PretrainedConfig, known: list[str], group: int, devices: int) -> None:
    """Refuse a model whose layers cannot be split over the devices of a tensor group.

    Args:
        model: as --model gives it.
        known: the families that have a plan.
        group: devices in a tensor group, of all `devices`.

    Raises:
        InputError: says what would fit.
    """
    if config.model_type not in known:
        raise InputError(f"--model {model}: the layers of a {config.model_type!r} model cannot be split here; "
                         f"those of {', '.join(known)} can")
    fits = fitting_groups(config, devices)
    if group not in fits:
        raise InputError(f"--tensor_parallel {group}: the {config.num_attention_heads} heads of {model}, or its "
                         f"feed-forward width of {_middle(config)}, cannot be divided by that; use "
                         f"{' or '.join(map(str, fits))}")


def check_shared_tokens(max_length: int, multiple: int, group: int) -> None:
    """Refuse lengths of which the devices of a tensor group cannot take equal parts.

    Args:
        max_length: tokens of a sample, at most.
        multiple: shorter batches are padded to multiples of this.

    Raises:
        InputError: says what would fit.
    """
    if multiple % group:
        fits = " or ".join(map(str, divisors(multiple)))
        raise InputError(f"--sequence_parallel: batches are padded to multiples of {multiple} tokens, which "
                         f"{group} devices cannot split; use --tensor_parallel {fits}")
    if max_length % group:
        raise InputError(f"--sequence_parallel: {group} devices cannot split {max_length} tokens; use "
                         f"--max_seq_length {max_length // group * group}")
