"""FusedMobileNet on the CUDA kernels: emulated on the host at first, then on a GPU.

On a GPU it is compared with the stock network in float64 on the CPU.
"""

import copy
import pickle
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from cuda_on_host.library import library
from implementations import on_gpu, why_not_on_host
from models import images, make_pair, named_gradients
from torch import Tensor, nn

from mobilenet_ext import (
    FusedMobileNet,
    MobileNet,
    autograd,
    batch_norm,
    block,
    chain,
    pointwise,
    stem,
)


@cache
def labels(count: int, device: torch.device) -> Tensor:
    """Kept, as memory of the CPU cannot be read while a graph is captured."""
    return (torch.arange(count) % 7).to(device)


def loss_of(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Under autocast where there is a dtype."""
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        logits = model(x)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits, labels(len(x), x.device))


def step(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A forward and a backward; returns the loss."""
    model.zero_grad()
    loss = loss_of(model, x, dtype)
    loss.backward()
    return loss.detach()


def assert_step_is_near(
    fused: nn.Module, exact: nn.Module, loss: Tensor, exact_loss: Tensor, tolerance: float
) -> None:
    """Loss, gradients, by their norm, and running statistics."""
    torch.testing.assert_close(loss.double().cpu(), exact_loss, rtol=tolerance, atol=tolerance)
    gradients = named_gradients(fused)
    for name, expected in named_gradients(exact).items():
        error = (gradients[name].double().cpu() - expected).norm() / expected.norm()
        assert error <= 30 * tolerance, f"{name}: relative error {error:.2g}"
    buffers = dict(fused.named_buffers())
    for name, expected in exact.named_buffers():
        torch.testing.assert_close(
            buffers[name].double().cpu(), expected.double(), rtol=tolerance, atol=tolerance
        )


@pytest.mark.slow
@pytest.mark.skipif(why_not_on_host() is not None, reason=str(why_not_on_host()))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str
)
@pytest.mark.parametrize("one_op", [True, False], ids=["one_op", "step_by_step"])
def test_a_training_step_on_the_emulated_kernels(
    one_op: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batch of which no value lies so near to a kink that rounding takes it across."""
    torch.manual_seed(1)
    stock, fused = make_pair()
    x = images(4, 3, 32, 32)
    expected = step(stock.double(), x.double())
    for module in (autograd, batch_norm, block, chain, pointwise, stem):
        monkeypatch.setattr(module, "_ops", library().ops)
    for module in (pointwise, stem):
        monkeypatch.setattr(module, "DEVICES_WITH_OP", set())
    monkeypatch.setattr(stem, "DEVICES_WITH_PATCHES", {"cpu"})
    if not one_op:
        monkeypatch.setattr(chain, "DEVICES_WITH_OP", set())
    actual = step(fused.to(dtype), x.to(dtype))
    assert_step_is_near(fused, stock, actual, expected, tolerance)


def gpu_pair() -> tuple[MobileNet, FusedMobileNet]:
    """The stock network in float64 on the CPU, and its fused twin in float32 on the GPU."""
    stock, fused = make_pair(alpha=0.5)
    return stock.double(), fused.to("cuda", memory_format=torch.channels_last)


def gradient_errors(model: nn.Module, exact: nn.Module) -> Tensor:
    """Relative errors of all gradients, by their norm."""
    gradients = named_gradients(model)
    return torch.stack(
        [
            (gradients[name].double().cpu() - expected).norm() / expected.norm()
            for name, expected in named_gradients(exact).items()
        ]
    )


@on_gpu
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_training_step(dtype: torch.dtype | None) -> None:
    """As close to float64 as the stock network comes with the same precision."""
    exact, fused = gpu_pair()
    stock = copy.deepcopy(exact).float().to("cuda", memory_format=torch.channels_last)
    x = images(8, 3, 96, 96)
    exact_loss = step(exact, x.double())
    losses = [step(model, x.cuda(), dtype).double().cpu() for model in (stock, fused)]
    allowed = 2 * (losses[0] - exact_loss).abs() + (1e-3 if dtype is None else 5e-2)
    assert (losses[1] - exact_loss).abs() <= allowed
    errors = [gradient_errors(model, exact) for model in (stock, fused)]
    assert errors[1].median() <= 2 * errors[0].median() + 1e-4
    assert errors[1].max() <= 3 * errors[0].max() + 1e-2
    buffers = dict(fused.named_buffers())
    for name, expected in stock.named_buffers():
        torch.testing.assert_close(buffers[name], expected, rtol=3e-2, atol=3e-2)


@on_gpu
def test_a_step_with_scaled_gradients() -> None:
    """Float16 as it is trained: the scaler finds nothing infinite and the weights move."""
    _, fused = gpu_pair()
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    before = fused.stem.conv.weight.detach().clone()
    scaler.scale(loss_of(fused, images(8, 3, 64, 64).cuda(), torch.float16)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**10
    assert not torch.equal(before, fused.stem.conv.weight)


@on_gpu
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_steps_are_the_same_bits_every_time(dtype: torch.dtype | None) -> None:
    """With torch's own convolutions held to deterministic algorithms."""
    _, fused = gpu_pair()
    x = images(8, 3, 96, 96).cuda()
    results = []
    was = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        for _ in range(3):
            model = copy.deepcopy(fused)
            results.append([step(model, x, dtype), *named_gradients(model).values()])
    finally:
        torch.backends.cudnn.deterministic = was
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


@on_gpu
def test_a_step_on_a_side_stream() -> None:
    """The kernels run on the current stream: behind what fills their input there."""
    _, fused = gpu_pair()
    x = images(8, 3, 64, 64).cuda()
    expected = step(copy.deepcopy(fused), x)
    late = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        loss = step(fused, late)
    side.synchronize()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@on_gpu
def test_a_training_step_can_be_captured() -> None:
    """Forward, backward and update in one CUDA graph; replays train as plain steps do."""
    _, plain = gpu_pair()
    plain.train()
    captured = copy.deepcopy(plain)
    batches = [images(8, 3, 64, 64).cuda() for _ in range(4)]
    static = batches[0].clone()
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (plain, captured)]

    def update(index: int, model: nn.Module, x: Tensor) -> Tensor:
        loss = step(model, x)
        optimizers[index].step()
        return loss

    state = copy.deepcopy(captured.state_dict())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update(1, captured, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = update(1, captured, static)
    captured.load_state_dict(state)
    for x in batches:
        static.copy_(x)
        graph.replay()
        torch.testing.assert_close(loss, update(0, plain, x), rtol=1e-4, atol=1e-5)
    assert captured.stem.bn.num_batches_tracked == plain.stem.bn.num_batches_tracked


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inference(dtype: torch.dtype) -> None:
    """As close to float64 as the stock network comes with the same precision."""
    exact, fused = (model.eval() for model in gpu_pair())
    x = images(4, 3, 96, 96)
    expected = exact(x.double()).detach()
    stock, fused, x = copy.deepcopy(exact).to("cuda", dtype), fused.to(dtype), x.to("cuda", dtype)
    with torch.inference_mode():
        error = (stock(x).double().cpu() - expected).abs().max()
        outputs = [fused(x), fused.freeze()(x), fused.freeze(cuda_graph=True)(x)]
    floor = 1e-4 if dtype == torch.float32 else 2**-8
    for output in outputs:
        assert output.dtype == dtype
        actual = (output.double().cpu() - expected).abs().max()
        assert actual <= 2 * error + floor * expected.abs().max()


@on_gpu
def test_frozen_with_a_graph_for_each_shape() -> None:
    """Earlier outputs stay as they are, and modes and streams may change between calls."""
    _, fused = gpu_pair()
    plain, frozen = fused.freeze(), fused.freeze(cuda_graph=True)
    inputs = [images(n, 3, 64, 64).cuda() for n in (1, 4, 1, 4)]
    with torch.inference_mode():
        outputs = [frozen(inputs[0]), frozen(inputs[1])]
    with torch.cuda.stream(torch.cuda.Stream()):
        outputs.append(frozen(inputs[2].contiguous(memory_format=torch.channels_last)))
    outputs.append(frozen(inputs[3]))
    torch.cuda.synchronize()
    for x, output in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(output, plain(x), rtol=1e-5, atol=1e-5)


@on_gpu
def test_copies_and_casts_of_a_frozen_network_capture_again() -> None:
    _, fused = gpu_pair()
    frozen, x = fused.freeze(cuda_graph=True), images(1, 3, 64, 64).cuda()
    expected = frozen(x)
    copies = (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)))  # noqa: S301
    assert all(torch.equal(other(x), expected) for other in copies)
    assert frozen.half()(x.half()).dtype == torch.float16
    frozen.cpu()
    with pytest.raises(ValueError, match="model must be on a CUDA device for cuda_graph=True, got"):
        frozen(x)
    frozen.cuda()
    with pytest.raises(ValueError, match="input must be on cuda:0, got 'cpu'"):
        frozen(x.cpu())
    with torch.autocast("cuda"), pytest.raises(ValueError, match="autocast must be off"):
        frozen(x.half())


@on_gpu
def test_on_the_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    exact, fused = gpu_pair()
    fused = fused.to("cuda:1")
    x = images(8, 3, 96, 96)
    loss = step(fused, x.to("cuda:1"))
    assert_step_is_near(fused, exact, loss, step(exact, x.double()), 1e-3)
    frozen = fused.eval().freeze(cuda_graph=True)
    torch.testing.assert_close(
        frozen(x.to("cuda:1")), fused.freeze()(x.to("cuda:1")), rtol=1e-5, atol=1e-5
    )


def test_graphs_need_a_gpu() -> None:
    fused = make_pair()[1].eval()
    message = "^freeze: model must be on a CUDA device for cuda_graph=True, got 'cpu'$"
    with pytest.raises(ValueError, match=message):
        fused.freeze(cuda_graph=True)
