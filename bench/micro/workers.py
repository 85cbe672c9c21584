"""Phase 2 of several workers on one device: in turn, side by side as one model, or on streams.

A worker's update is that of `swap_fast`: its own batch, its own weights, batch-norm statistics
and velocity. Stacked variants make the same updates in one pass over a model that holds the
weights of all workers, with W times fewer and W times larger kernels.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from bench.micro.interleave import Turn
from bench.micro.peak import observe
from bench.micro.step import make_step, nesterov_sgd, with_torch_convolutions
from swap_fast.config.execution import Execution
from swap_fast.host_memory import keep_freed_memory
from swap_fast.models import ResNet9
from swap_fast.training.capture import Captures


class GroupedLinear(nn.Module):
    """W linear layers side by side: [B, W * in] to [B, W * out]."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """Each worker's features times its own weights [W, out, in]."""
        apart = x.unflatten(1, (len(self.weight), -1))
        return torch.einsum("bwi,woi->bwo", apart, self.weight).flatten(1)


def group(models: list[nn.Module]) -> nn.Module:
    """One model of W equal ones: images [B, W * 3, H, W] to logits [B, W * classes].

    Convolutions become grouped ones, batch norms W times as wide ones, linear layers batched
    products; every other layer must treat all channels the same.
    """
    first = models[0]
    if isinstance(first, nn.Linear):
        return GroupedLinear([m for m in models if isinstance(m, nn.Linear)])
    if isinstance(first, nn.Conv2d):
        grouped = copy.deepcopy(first)
        grouped.groups = len(models)
        grouped.in_channels, grouped.out_channels = (
            len(models) * first.in_channels,
            len(models) * first.out_channels,
        )
        return _joined(grouped, models)
    if isinstance(first, nn.BatchNorm2d):
        grouped_norm = copy.deepcopy(first)
        grouped_norm.num_features = len(models) * first.num_features
        return _joined(grouped_norm, models)
    stacked = copy.deepcopy(first)
    for name, _ in first.named_children():
        setattr(stacked, name, group([m.get_submodule(name) for m in models]))
    return stacked


def _joined(module: nn.Module, models: list[nn.Module]) -> nn.Module:
    """Give a module the parameters and buffers of all models, along the first dimension."""
    states = [dict(m.named_parameters(recurse=False)) for m in models]
    for name in states[0]:
        joined = torch.cat([state[name].detach() for state in states])
        setattr(module, name, nn.Parameter(joined))
    for name, buffer in models[0].named_buffers(recurse=False):
        if buffer.dim() > 0:
            module.register_buffer(name, torch.cat([m.get_buffer(name) for m in models]))
    return module


def grouped_losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Each worker's mean loss [W] from a grouped model."""
    workers = len(images)
    # Worker w's channels are w * 3 to w * 3 + 2.
    side_by_side = images.transpose(0, 1).flatten(1, 2)
    logits = model(side_by_side).unflatten(1, (workers, -1)).float()
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.t().flatten(), reduction="none"
    )
    return losses.view(-1, workers).mean(0)


def stacked_gradients(
    model: nn.Module,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[dict[str, Tensor], Tensor]:
    """Each worker's gradients and losses by `vmap` over stacked weights [W, ...].

    The buffers are updated in place: each worker's own statistics, of its own batch. Both results
    are of the scaled loss.
    """

    def loss(own: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, (own, state), (x,))
        return scale(nn.functional.cross_entropy(logits.float(), y))

    # `grad` differentiates within; without this, autograd would record all of it once more.
    with torch.no_grad():
        gradients, losses = vmap(grad_and_value(loss))(parameters, buffers, images, labels)
    return gradients, losses


def in_turn(execution: Execution, width: int, batch_size: int, workers: int) -> Turn:
    """One worker's update after the other, as a run does with fewer devices than workers."""
    keep_freed_memory()
    steps = [make_step(execution, width, batch_size)[0] for _ in range(workers)]

    def prepare() -> None:
        for step in steps:
            step.warm_up()
            step.images.normal_()

    def update() -> None:
        for step in steps:
            step()

    device = torch.device(execution.device_type)
    return observe(device, lambda: update, workers * batch_size, prepare=prepare)


def on_streams(execution: Execution, width: int, batch_size: int, workers: int) -> Turn:
    """The same on a CUDA device, each worker's update on a stream of its own."""
    steps = [make_step(execution, width, batch_size)[0] for _ in range(workers)]
    streams: list[torch.cuda.Stream] = [torch.cuda.Stream() for _ in steps]

    def prepare() -> None:
        for step in steps:  # one capture at a time
            step.warm_up()
            step.images.normal_()

    def update() -> None:
        main = torch.cuda.current_stream()
        for step, stream in zip(steps, streams, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                step()
        for stream in streams:
            main.wait_stream(stream)

    device = torch.device(execution.device_type)
    return observe(device, lambda: update, workers * batch_size, prepare=prepare)


def _torch_net(width: int) -> nn.Module:
    """Neither groups nor `vmap` know our own weight gradient."""
    return with_torch_convolutions(ResNet9(width=width))


def grouped(execution: Execution, width: int, batch_size: int, workers: int) -> Turn:
    """All workers' updates at once, by grouped convolutions and one fused SGD."""
    keep_freed_memory()
    device = torch.device(execution.device_type)

    def make() -> Callable[[], None]:
        model = execution.place(group([_torch_net(width) for _ in range(workers)]), device)
        images, labels = _batches(execution, workers, batch_size)
        update = _Update(list(model.parameters()), execution)

        def losses(images: Tensor, labels: Tensor) -> Tensor:
            with execution.autocast():
                return grouped_losses(model, images, labels)

        forward = torch.compile(losses, dynamic=False) if execution.step == "compiled" else losses

        def step() -> None:
            update.optimizer.zero_grad(set_to_none=True)
            # Workers share no weight: the gradient of the sum is each worker's own.
            update.scaler.scale(forward(images, labels).sum()).backward()
            update()

        return _captured_at_first(step) if execution.capture else step

    return observe(device, make, workers * batch_size)


def _captured_at_first(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph, captured by the first call."""
    replay: Callable[[], None] | None = None

    def run() -> None:
        nonlocal replay
        if replay is None:
            replay = Captures().capture(step)
        replay()

    return run


def vmapped(execution: Execution, width: int, batch_size: int, workers: int) -> Turn:
    """All workers' updates at once, by `vmap` over stacked weights and one fused SGD.

    On a CUDA device contiguous only: torch cannot `vmap` a channels_last batch norm there.
    """
    keep_freed_memory()
    device = torch.device(execution.device_type)

    def make() -> Callable[[], None]:
        models = [execution.place(_torch_net(width), device) for _ in range(workers)]
        parameters, buffers = stack_module_state(models)
        if execution.precision != "fp32":
            _normalise_in_float32(models[0], execution.dtype)
        images, labels = _batches(execution, workers, batch_size)
        update = _Update(list(parameters.values()), execution)

        def step() -> None:
            with execution.autocast():
                gradients, _ = stacked_gradients(
                    models[0], parameters, buffers, images, labels, update.scaler.scale
                )
            for name, gradient in gradients.items():
                parameters[name].grad = gradient
            update()

        return step

    return observe(device, make, workers * batch_size)


def _normalise_in_float32(model: nn.Module, dtype: torch.dtype) -> None:
    """Make batch norms compute in float32: under `vmap` torch's need one type for all inputs."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
            norm.register_forward_hook(lambda _, inputs, output: output.to(dtype))


class _Update:
    """Fused Nesterov SGD over the weights of all workers, under a loss scale in fp16."""

    def __init__(self, parameters: list[Tensor], execution: Execution) -> None:
        self.optimizer = nesterov_sgd(parameters, fused=True)
        for parameter in parameters:  # torch would make it uninitialised: see `MomentumSGD`
            velocity = torch.zeros_like(parameter)
            self.optimizer.state[parameter]["momentum_buffer"] = velocity
        scaled = execution.precision == "fp16"
        self.scaler = torch.amp.GradScaler(execution.device_type, enabled=scaled)
        self.scaler.scale(torch.zeros((), device=parameters[0].device))  # allocates its tensors

    def __call__(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _batches(execution: Execution, workers: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Random images [W, B, 3, 32, 32], and labels [W, B]."""
    device = torch.device(execution.device_type)
    images = torch.randn(workers, batch_size, 3, 32, 32, device=device).to(execution.dtype)
    return images, torch.zeros(workers, batch_size, dtype=torch.int64, device=device)
