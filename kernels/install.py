"""Put the fused loss into one Hugging Face causal language model, and take it out again.

    head = install_loss_head(model, loss=losses.truncated(0.9))
    Trainer(model=model, ...).train()         # never makes all logits; counts tokens as Trainer does
    head.remove()

    install_loss_head(trainer, loss=losses.truncated(0.9))  # the same for a Trainer or SFTTrainer

Only this instance's `forward` is patched, and only calls with labels are served by it: generation, saving,
loading and the state dict do not notice. The class, and transformers' own loss functions, stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .dispatch import Implementation, LossStatistics, check_loss, linear_cross_entropy, linear_implementation
from .losses import LossFunctions

_PROBE_TOKENS = 4


class Handle:
    """What `install_loss_head` returns. `statistics`: of the last batch with labels, detached; None before."""

    def __init__(self, model: nn.Module, trainer: Any = None) -> None:
        self.model = model
        self._trainer = trainer
        self.active = True
        self.statistics: LossStatistics | None = None
        self._before: Any = model.__dict__.get("forward")

    def remove(self) -> None:
        """Bring back the model's own forward. Doing it twice does no harm."""
        forward = self.model.__dict__.get("forward")
        # Somebody (accelerate's mixed precision) may have wrapped our forward: it stays there, as a passage.
        if self.active and _handle_of(forward) is self and not hasattr(forward, "__wrapped__"):
            del self.model.__dict__["forward"]
            if self._before is not None:
                self.model.__dict__["forward"] = self._before
        if self.active and self._trainer is not None:
            self._trainer.__dict__.pop("compute_loss", None)
        self.active = False


def install_loss_head(
    model: Any,
    *,
    loss: LossFunctions | None = None,
    chunk_rows: int | None = None,
    impl: Implementation = "auto",
    entropy: bool = False,
) -> Handle:
    """Patch `model.forward` so that calls with labels return this loss, and no logits.

    Works for any transformers `*ForCausalLM` whose logits are a plain linear layer over the last hidden state, then
    at most a scale (Granite, Cohere) and a soft cap (Gemma): that is tried out here on a few made-up hidden states,
    against the model's own forward. Also for a peft model around one.

    Install before wrapping: DDP; FSDP2 (`fully_shard` of the model, whose root gathers the head's weight, or of the
    head on its own as well, which torch refuses of a weight that is shared); torch.compile, which compiles the model
    under the head and breaks the graph there.

    With `num_items_in_batch` (Trainer passes it) that is the denominator: target tokens of the whole accumulated
    batch, live or not. A loss with denominator "live" is averaged over the live tokens of each call, and calls are
    averaged by their share of `num_items_in_batch`.

    Args:
        model: a PreTrainedModel or PeftModel, or a Trainer that has one; patched in place. Of TRL's SFTTrainer, which
            computes cross entropy by itself, the computation of the loss is replaced too; what it logs beside the loss
            (entropy, accuracy) falls away with it.
        loss: f and f', see `kernels.losses`; cross entropy by default.
        chunk_rows, impl, entropy: as in `linear_cross_entropy`; nll and entropy are then in the handle's statistics.

    A call may pass `sequence_baseline` on, (sequences,), for a loss that drops sequences (`losses.tail`); and as
    `token_loss` a loss of its own instead of the installed one. The handle's statistics are those of the last call.

    Raises:
        TypeError: the model is not of that kind. ValueError: its logits are computed in another way.
        RuntimeError: it has a loss head already.
    """
    linear_implementation(impl)
    trainer: Any = None
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        trainer, model = _computes_its_own(model), model.model
    unwrap: Any = getattr(model, "get_base_model", None)  # peft
    inner: Any = unwrap() if unwrap is not None else model
    if isinstance(getattr(inner, "module", None), nn.Module) or hasattr(inner, "_orig_mod"):
        raise TypeError(f"model: {type(inner).__name__} is a wrapper; install the loss head before wrapping")
    body, head = _parts(inner)
    installed = _handle_of(inner.__dict__.get("forward"))
    if installed is not None and installed.active:
        raise RuntimeError("model: has a loss head already; call remove() on its handle first")
    softcap, scale = _after_head(inner)
    if not any(p.is_meta for p in inner.parameters()):
        _probe(inner, body, head, softcap=softcap, scale=scale)

    handle = Handle(inner, trainer)
    original = inner.forward  # the class's, or what an earlier patch made of it
    signature = inspect.signature(original)
    models_own = getattr(original, "__func__", None) or (lambda self, *args, **kwargs: original(*args, **kwargs))
    variadic = _variadic(signature)
    accepting = signature
    if variadic.name not in signature.parameters:
        accepting = signature.replace(parameters=[*signature.parameters.values(), variadic])

    # How many rows are live is known only when they have been computed: no graph holds the head. Here it is broken in
    # one place, and `body` is compiled as a whole.
    @partial(torch.compiler.disable, recursive=False)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not handle.active:
            return models_own(self, *args, **kwargs)
        given = accepting.bind_partial(*args, **kwargs).arguments
        if given.get("labels") is None:
            return models_own(self, *args, **kwargs)
        given.update(given.pop(variadic.name, {}))
        body, head = _parts(self)  # `self` may be a copy of the model this was installed on
        return _forward(self, body, head, given, handle, fused)

    def call(
        hidden: Tensor,
        head: nn.Linear,
        targets: Tensor,
        items: Any,
        baseline: Tensor | None,
        own: LossFunctions | None,
    ) -> tuple[Tensor, LossStatistics]:
        judged = loss if own is None else own
        if own is not None:
            check_loss(own)
        live = judged is not None and judged.denominator == "live"
        value, statistics = linear_cross_entropy(
            hidden,
            head.weight,
            targets,
            loss=judged,
            bias=head.bias,
            softcap=softcap,
            logit_scale=scale,
            denominator=None if live else items,
            impl=impl,
            chunk_rows=chunk_rows,
            entropy=entropy,
            sequence_baseline=baseline,
        )
        if live and items is not None:
            value = value * (statistics.tokens / torch.as_tensor(items, device=value.device))
        return value, statistics

    fused = torch.compiler.disable(call)
    # No `__wrapped__`, as torch's decorator left one: accelerate would follow it past this patch when it unwraps mixed
    # precision, and `remove` knows by it that somebody has wrapped our forward.
    forward.__dict__.pop("__wrapped__", None)
    forward.__doc__ = original.__doc__
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = accepting.replace(parameters=[first, *accepting.parameters.values()])
    forward.loss_head = handle
    inner.forward = MethodType(forward, inner)  # bound, so that a deep copy runs the copy's own weights
    if trainer is not None:
        from transformers import Trainer

        trainer.compute_loss = MethodType(Trainer.compute_loss, trainer)
    return handle


def _computes_its_own(trainer: Any) -> Any:
    """The trainer, if the loss is computed by TRL's SFTTrainer; none if by Trainer, or by its owner's own method."""
    if getattr(trainer, "compute_loss_func", None) is not None:
        raise ValueError(
            "model: the trainer has a compute_loss_func, which would never see a loss of the head; make it without one"
        )
    for each in type(trainer).__mro__:
        if "compute_loss" in vars(each):
            return trainer if each.__name__ == "SFTTrainer" and each.__module__.startswith("trl.") else None
    return None


def _handle_of(forward: Any) -> Handle | None:
    return getattr(forward, "loss_head", None)


def _variadic(signature: inspect.Signature) -> inspect.Parameter:
    """The forward's **kwargs, or one to be added: Trainer passes `num_items_in_batch` only where there is one."""
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return parameter
    return inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)


def _parts(model: Any) -> tuple[nn.Module, nn.Linear]:
    """The model without its head, and the head."""
    name = type(model).__name__
    body = getattr(model, "base_model", None)
    if not isinstance(body, nn.Module) or body is model or not hasattr(model, "get_output_embeddings"):
        raise TypeError(f"model: {name} is no causal language model of transformers, nor a peft model around one")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        raise TypeError(
            f"model: the output head of {name} is {type(head).__name__}, not a plain linear layer; with LoRA, leave "
            "it out of `target_modules` and `modules_to_save`"
        )
    return body, head


def _after_head(model: Any) -> tuple[float | None, float]:
    """Soft cap and scale that the model's forward puts on its logits, as far as configurations tell."""
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(model, "logit_scale", None)  # Cohere multiplies
    if scale is None:
        scale = 1 / (getattr(config, "logits_scaling", None) or 1)  # Granite divides
    return (float(softcap) if softcap else None), float(scale)


def _probe(model: Any, body: nn.Module, head: nn.Linear, *, softcap: float | None, scale: float) -> None:
    """Refuse a model whose logits are not cap(scale * head(hidden)); no model is trained on a slightly wrong loss."""
    if hasattr(head.weight, "full_tensor"):
        raise TypeError("model: its head is sharded already; install the loss head before sharding")
    device = model.get_input_embeddings().weight.device
    width = head.weight.shape[1]
    wave = torch.arange(_PROBE_TOKENS * width, dtype=torch.float32).mul_(0.7).sin_().reshape(1, -1, width)
    seen: list[Tensor] = []
    given: list[tuple[Tensor, Tensor]] = []  # what the head itself made, in whatever precision the call computes

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        given.append((inputs[0], output))

    def replace(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        made = wave.to(head.weight)
        # strong enough for a soft cap to show: a fresh model's own logits are all near 0
        made = made * (20 / (abs(scale) * head(made).float().std()).clamp(min=1e-6)).to(made.dtype)
        seen.append(made)
        if isinstance(outputs, tuple):
            return (made, *outputs[1:])
        outputs.last_hidden_state = made
        return outputs

    modes = {module: module.training for module in model.modules()}
    hooks = (body.register_forward_hook(replace), head.register_forward_hook(record))
    try:
        model.eval()
        with torch.no_grad():
            ids = torch.arange(1, _PROBE_TOKENS + 1, device=device) % head.weight.shape[0]
            logits = model(input_ids=ids[None], use_cache=False, return_dict=True).logits.float()
            own = next((output for hidden, output in given if len(seen) == 1 and _equal(hidden, seen[0])), None)
            if own is None and len(seen) == 1:
                own = head(seen[0])
            expected = None if own is None else own.float() * scale
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if expected is not None and softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    tolerance = 1e-3 if own is not None and own.dtype in (torch.float32, torch.float64) else 0.05
    if (
        expected is None
        or expected.shape != logits.shape
        or not torch.allclose(logits, expected.to(logits.device), rtol=tolerance, atol=tolerance * 20)
    ):
        raise ValueError(
            f"model: {type(model).__name__} does not compute its logits as a linear layer over its last hidden state "
            f"(found: scale {scale:g}, soft cap {softcap}), so its loss cannot be fused; train it with its own forward"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _forward(
    model: Any,
    body: nn.Module,
    head: nn.Linear,
    given: dict[str, Any],
    handle: Handle,
    call: Callable[..., tuple[Tensor, LossStatistics]],
) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    labels = given.pop("labels")
    items = given.pop("num_items_in_batch", None)
    shifted = given.pop("shift_labels", None)
    baseline, own = given.pop("sequence_baseline", None), given.pop("token_loss", None)
    keep = given.pop("logits_to_keep", 0)
    return_dict = given.pop("return_dict", None)
    if not (keep is None or (isinstance(keep, int) and keep == 0)):
        raise ValueError(f"logits_to_keep = {keep}: cannot be given together with labels")
    if given.get("output_router_logits", getattr(model.config, "output_router_logits", False)):
        raise ValueError("output_router_logits: the loss head knows no auxiliary loss; set it to False")
    outputs = body(**given)
    hidden = outputs[0] if isinstance(outputs, tuple) else outputs.last_hidden_state
    if shifted is None:
        # the same rows as hidden, the last one without a target: no copy of hidden is needed
        shifted = nn.functional.pad(labels[..., 1:], (0, 1), value=-100)
    device = head.weight.device
    if hasattr(head, "set_reshard_after_forward"):  # fully_shard has wrapped it by itself
        value, handle.statistics = _within(
            head, lambda hidden: call(hidden.to(device), head, shifted.to(device), items, baseline, own), hidden
        )
    else:
        _refuse_part(head)
        value, handle.statistics = call(hidden.to(device), head, shifted.to(device), items, baseline, own)
    # by the names that the class has: transformers 5.24 calls `past_key_values` `cache`
    others = {field.name for field in fields(CausalLMOutputWithPast)} - {"loss", "logits"}
    result = CausalLMOutputWithPast(loss=value, **{name: getattr(outputs, name, None) for name in others})
    wants_dict = getattr(model.config, "return_dict", True) if return_dict is None else return_dict
    return result if wants_dict else result.to_tuple()


def _within(
    head: nn.Linear, compute: Callable[[Tensor], tuple[Tensor, LossStatistics]], hidden: Tensor
) -> tuple[Tensor, LossStatistics]:
    """What `compute` makes of the hidden states, in the place of the head's linear layer.

    A head that `fully_shard` has wrapped by itself gathers its weight in its own forward, and its gradient is reduced
    by hooks on what goes in and comes out.
    """
    found: list[LossStatistics] = []

    def forward(hidden: Tensor) -> Tensor:
        _refuse_part(head)
        value, statistics = compute(hidden)
        found.append(statistics)
        return value

    before = head.__dict__.get("forward")
    head.__dict__["forward"] = forward
    try:
        value = head(hidden)
    finally:
        del head.__dict__["forward"]
        if before is not None:
            head.__dict__["forward"] = before
    return value, found[0]


def _refuse_part(head: nn.Linear) -> None:
    if hasattr(head.weight, "full_tensor"):
        raise TypeError("lm_head: its weight is a DTensor that no fully_shard gathers; shard the model by that")
