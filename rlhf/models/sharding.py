"""Sharded weights on torch's own engine, `fully_shard` (FSDP2): each process holds a part of all that is trained.

A model exists twice. The *plain* module is the one that the rest of the program knows: it samples, reads, scores, is
evaluated and exported. Its weights are whole inside `Shards.whole()`, which gathers them once, and NaN outside. Inside
nothing is communicated, so processes may run any number of forward passes of any shape, or none. The *sharded* module
is a copy of its structure whose weights are `fully_shard`'s DTensors: only updates run it, and there all processes must
run the same number of forward and backward passes.

`fully_shard` is called here and not through accelerate's plugin, which would see an actor-critic without the attributes
by which it finds decoder layers (one unit for the whole model), casts outputs to bfloat16 (log-probabilities and values
must be float32), and is silently absent on CPUs. Sampling does not run a model with its hooks: they gather each layer
again for every token, cannot be recorded as CUDA graphs, and make whichever layer is called first the root.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.models.adapters import checkpointing_contexts, has_adapters
from rlhf.models.packing import copy_packing
from rlhf.models.trunk import enable_gradient_checkpointing, unwrap_peft


class Shards:
    """A module of which each process holds a shard of each weight, and all of them only inside `whole()`."""

    def __init__(self, module: nn.Module, parts: Mapping[str, Any], computed: Mapping[str, torch.dtype] | None = None):
        """Free the module's weights.

        Args:
            module: its parameters stay the same objects, with the same names, shapes and `requires_grad`.
            parts: by name, the DTensor of each parameter, sharded over the default process group.
            computed: by name, types in which weights are gathered for computation, where they are not the stored ones.
        """
        self.module = module
        self.parts = dict(parts)
        self.computed = dict(computed or {})
        self._users = dict.fromkeys(self.parts, 0)
        self._exact = False
        for name, p in self._parameters(module).items():
            _release(p, self.parts[name])

    @contextmanager
    def whole(self, part: nn.Module | None = None, exact: bool = False) -> Iterator[None]:
        """Hold whole weights. All processes enter together; inside, and to leave, none needs another.

        Args:
            part: a module inside, whose weights alone are gathered; None: all weights.
            exact: gather the stored types, as for an export; may not be nested in a context without it.
        """
        parameters = self._parameters(self.module if part is None else part)
        assert self._exact or not exact or not any(self._users.values())
        outer, self._exact = self._exact, self._exact or exact
        for name, p in parameters.items():
            if self._users[name] == 0:
                p.data = self._gathered(name)
            self._users[name] += 1
        try:
            yield
        finally:
            self._exact = outer
            for name, p in parameters.items():
                self._users[name] -= 1
                if self._users[name] == 0:
                    _release(p, self.parts[name])

    def restore(self) -> None:
        """Give the module its whole weights, of the stored types, for good. All processes call it."""
        assert not any(self._users.values())
        self._exact = True
        for name, p in self._parameters(self.module).items():
            p.data = self._gathered(name)
            self._users[name] += 1

    def _parameters(self, part: nn.Module) -> dict[str, nn.Parameter]:
        inside = {id(p) for p in part.parameters()}
        return {name: p for name, p in self.module.named_parameters() if id(p) in inside}

    @torch.no_grad()
    def _gathered(self, name: str) -> Tensor:
        shard = self.parts[name].detach()
        if name in self.computed and not self._exact:
            shard = shard.to(self.computed[name])
        return shard.full_tensor()

    def bytes_per_process(self) -> int:
        """Of this process's shards."""
        return sum(local(shard).nbytes for shard in self.parts.values())


@contextmanager
def whole_weights(shards: Iterable[Any], exact: bool = False) -> Iterator[None]:
    """Hold the whole weights of several modules (`Shards`); nothing to do where none is sharded.

    `Any`, because the type checks of the tests draw from Python's random generator to check an element of a list.
    """
    with ExitStack() as stack:
        for module in shards:
            stack.enter_context(module.whole(exact=exact))
        yield


def shard_for_training(module: nn.Module, accelerator: Any, gradient_checkpointing: bool) -> tuple[nn.Module, Shards]:
    """The sharded copy of a plain module, to be trained, and the shards, with which the plain one is filled.

    Each decoder layer is a unit of communication, and so are a value head, which stays float32, and a critic's trunk;
    the rest, embeddings, last norm and output head, belongs to the root. With bf16, the layers of a model without
    adapters are gathered as bfloat16, and gradients are summed in float32. Gradients are averages over processes, as
    DDP's are, by a sum and a division: the average of gloo did not divide (pytorch issue 162338).

    Args:
        module: on any device; afterwards its buffers are on the accelerator's.
        accelerator: its processes share the weights.
        gradient_checkpointing: whether the module recomputes activations.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = _mesh(accelerator.device)
    sharded = copy.deepcopy(module, {id(p): p for p in module.parameters()})  # the same parameters, until sharded
    for lm in sharded.children():
        if has_adapters(lm) and gradient_checkpointing:  # the copied layers would switch the plain module's adapters
            enable_gradient_checkpointing(unwrap_peft(lm), checkpointing_contexts(lm))
    layers = decoder_layers(sharded)
    others = [getattr(sharded, name, None) for name in ("value_head", "critic_lm")]
    plain = {id(p): p for p in module.parameters()}
    computed: dict[int, torch.dtype] = {}
    half = accelerator.mixed_precision == "bf16" and not any(has_adapters(lm) for lm in module.children())
    for unit in [*reversed(layers), *(unit for unit in others if unit is not None), sharded]:
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if half and unit in layers:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        whole = [p for p in unit.parameters() if id(p) in plain]
        if policy.param_dtype is not None:
            computed |= {id(p): policy.param_dtype for p in whole if p.is_floating_point()}
        for p in whole:
            p.data = p.data.to(accelerator.device)
        fully_shard(unit, mesh=mesh, reshard_after_forward=None if unit is sharded else True, mp_policy=policy)
        for p in whole:  # now, so that no more than one unit is whole on the device
            p.data = _placeholder(p, accelerator.device)
    for unit in sharded.modules():
        if isinstance(unit, FSDPModule):
            unit.set_force_sum_reduction_for_comms(True)
    names = {id(p): name for name, p in module.named_parameters()}
    _move_buffers(module, accelerator.device)
    _move_buffers(sharded, accelerator.device)
    shards = Shards(module, dict(sharded.named_parameters()), {names[i]: dtype for i, dtype in computed.items()})
    _compute_as_accelerated(sharded, accelerator)
    with shards.whole(exact=True):
        for name, lm in sharded.named_children():
            if hasattr(unwrap_peft(lm), "config"):
                copy_packing(unwrap_peft(module.get_submodule(name)), unwrap_peft(lm))
    return sharded, shards


def _compute_as_accelerated(module: nn.Module, accelerator: Any) -> None:
    """Run a module's forward passes under autocast, as `accelerator.prepare` does for other modules."""
    forward = module.forward

    def autocast_forward(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return forward(*args, **kwargs)

    module.forward = autocast_forward


def shard_frozen(module: nn.Module, device: torch.device, half: bool = False) -> Shards:
    """The shards of a model that is not trained, such as the reference.

    Args:
        half: gather decoder layers as bfloat16, as `shard_for_training` does.
    """
    mesh = _mesh(device)
    in_layers = {id(p) for layer in decoder_layers(module) for p in layer.parameters()} if half else set()
    named = dict(module.named_parameters())
    computed = {n: torch.bfloat16 for n, p in named.items() if id(p) in in_layers and p.is_floating_point()}
    parts = {name: shard_of(p.detach(), mesh, device) for name, p in named.items()}
    for p in named.values():
        p.data = _placeholder(p, device)
    _move_buffers(module, device)
    return Shards(module, parts, computed)


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The units that are gathered and freed one by one while a sharded module computes."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [unit for unit in module.modules() if isinstance(unit, GradientCheckpointingLayer)]


def gathered_bytes(module: nn.Module, half: bool = False) -> tuple[float, float]:
    """Memory of whole weights: of all of them while responses are collected, and of those that an update holds at once.

    An update holds the root's weights and their gradients, the layer that computes, the one that is gathered meanwhile,
    and the gradients of one layer before they are summed.

    Args:
        half: decoder layers are gathered as bfloat16.
    """

    def size(p: Tensor, in_layer: bool) -> float:
        return float(p.numel() * (2 if half and in_layer and p.is_floating_point() else p.element_size()))

    layers = [list(layer.parameters()) for layer in decoder_layers(module)]
    in_layers = {id(p) for layer in layers for p in layer}
    root = [p for p in module.parameters() if id(p) not in in_layers]
    largest = max((sum(size(p, True) for p in layer) for layer in layers), default=0.0)
    trained = max((sum(size(p, True) for p in layer if p.requires_grad) for layer in layers), default=0.0)
    update = sum(size(p, False) * (1 + p.requires_grad) for p in root) + 2 * largest + trained
    return sum(size(p, id(p) in in_layers) for p in module.parameters()), update


def shard_of(whole: Tensor, mesh: Any, device: torch.device) -> Any:
    """This process's part of a tensor that every process has, as a DTensor split along the first dimension."""
    from torch.distributed.tensor import DTensor, Shard

    parts = whole.chunk(mesh.size())
    rank = mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else whole[:0]
    local_part = part.detach().to(device, copy=True).contiguous()
    return DTensor.from_local(
        local_part, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.contiguous().stride()
    )


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one of which this process holds a part."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; other tensors as they are."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a sharded or whole one, in place."""
    if is_sharded(tensor):
        whole = local(shard_like(tensor, whole))
    local(tensor).copy_(whole)


def shard_like(tensor: Any, whole: Tensor) -> Any:
    """This process's part of a whole tensor, split as a sharded one is."""
    return shard_of(whole, tensor.device_mesh, tensor.to_local().device)


@torch.no_grad()
def gather_on_main(tree: Any, is_main: bool) -> Any:
    """Dictionaries and lists with their sharded tensors whole, on the CPU of the main process; elsewhere None instead.

    All processes call it; where nothing is sharded it returns what it gets.
    """
    if isinstance(tree, dict):
        return {key: gather_on_main(value, is_main) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gather_on_main(value, is_main) for value in tree]
    if not is_sharded(tree):
        return tree
    whole = tree.detach().full_tensor()
    return whole.cpu() if is_main else None


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for unit in module.modules():
        for name, buffer in unit.named_buffers(recurse=False):
            setattr(unit, name, buffer.to(device))


def _mesh(device: torch.device) -> Any:
    """All processes, by the backend of their device; made once."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (dist.get_world_size(),))


def _release(p: nn.Parameter, shard: Any) -> None:
    p.data = _placeholder(p, shard.device, shard.dtype)


def _placeholder(p: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the shape of `p` in the memory of one element, NaN, so that nobody takes it for weights."""
    empty = torch.zeros(1, dtype=dtype or p.dtype, device=device)
    if empty.is_floating_point():
        empty.fill_(torch.nan)
    return empty.expand(p.shape)
