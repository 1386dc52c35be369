"""The parts of the benchmarks that are meant for a GPU, tried on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mobilenet_ext import FusedMobileNet
from mobilenet_ext.inference import FrozenMobileNet

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = ["--batch", "1", "--threads", "1", "--rounds", "2", "--min-time", "0.002"]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def ops() -> ModuleType:
    import ops

    return ops


def rows(path: Path) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads(path.read_text())["points"]
    return points


def test_every_op_is_verified_and_timed_on_rotating_tensors(
    ops: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cold
    from op_cases import OPS

    monkeypatch.setattr(cold, "sets_needed", lambda size, device: 3)
    output = tmp_path / "ops.json"
    layers = ["--layers", "14/2/512", "7/1/1024", "--dtype", "float32", "bfloat16", "float16"]
    assert ops.main([*TINY, *layers, "--mode", "ops", "--json", str(output)]) == 0
    found = rows(output)
    assert len(found) == len(OPS) * 2 * 3
    assert {row["mode"] for row in found} == set(OPS)
    assert all(row["ms"] > 0 and row["gb_per_s"] > 0 for row in found)
    assert not any(row["disagreement"] or row["missing"] for row in found)


def test_modes_and_ops_are_measured_in_nchw(ops: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "ops.json"
    modes = ["inference", "conv-backward"]
    options = ["--layers", "7/1/1024", "--layout", "contiguous", "--mode", *modes]
    assert ops.main([*TINY, *options, "--json", str(output)]) == 0
    assert [(row["mode"], row["layout"]) for row in rows(output)] == [
        (mode, "contiguous") for mode in modes
    ]
    assert all(row["ms"] > 0 for row in rows(output))


def test_ops_on_vectors_are_compared_with_stock_ops(ops: ModuleType, tmp_path: Path) -> None:
    from op_cases import VECTOR_OPS

    output = tmp_path / "ops.json"
    options = ["--layers", "7/1/1024", "--mode", *VECTOR_OPS, "--json", str(output)]
    assert ops.main([*TINY, *options]) == 0
    assert len(rows(output)) == 2
    assert all(row["stock_ratio"] > 0 and row["gb_per_s"] == 0 for row in rows(output))


def test_bandwidth_counts_the_least_traffic(ops: ModuleType) -> None:
    from timing import Timing

    row = ops.Row("7/1/1024", "conv-norm", "float16", "channels_last")
    timings = {"ours": Timing([2.0, 2.0]), "copy": Timing([1.0, 1.0])}
    found = ops.with_numbers(row, timings, size=100_000_000, copied=200_000_000)
    assert found.gb_per_s == pytest.approx(50)
    assert found.percent_of_copy == pytest.approx(
        25
    )  # the copy moves twice as much in half the time
    assert found.stock_ratio is None


@pytest.mark.parametrize("mode", ["scale-shift-act", "norm-conv-statistics", "conv-backward"])
def test_a_wrong_kernel_is_not_timed(
    ops: ModuleType, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import op_cases

    right = getattr(op_cases.reference_ops, op_cases.OPS[mode].op)

    def other(*arguments: Any) -> Any:
        last = op_cases.as_list(right(*arguments))
        return [*last[:-1], last[-1] * 1.01]

    monkeypatch.setattr(op_cases.reference_ops, op_cases.OPS[mode].op, other)
    output = tmp_path / "ops.json"
    layers = ["--layers", "7/1/1024", "--mode", mode, "--json", str(output)]
    assert ops.main([*TINY, *layers]) == 1
    assert "relative error 0.0099" in rows(output)[0]["disagreement"]
    assert rows(output)[0]["ms"] == 0


def test_a_broken_layer_is_reported_and_the_others_run(
    ops: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import op_cases

    def broken(data: Any) -> Any:
        if data.layer.size == 14:
            raise RuntimeError("out of memory\nmore")
        return [data.input()]

    case = op_cases.OpCase("batch_norm_statistics", broken, (1, 0))
    monkeypatch.setitem(op_cases.CASES, "batch-norm-statistics", case)
    output = tmp_path / "ops.json"
    layers = ["--layers", "14/2/512", "7/1/1024", "--mode", "batch-norm-statistics"]
    assert ops.main([*TINY, *layers, "--json", str(output)]) == 1
    assert rows(output)[0]["disagreement"] == "RuntimeError: out of memory"
    assert rows(output)[1]["ms"] > 0


def test_an_op_without_a_kernel_is_said_to_have_none(ops: ModuleType) -> None:
    from layers import DEPTHWISE

    if ops.has_kernel("depthwise_conv", "cuda"):
        pytest.skip("this build has CUDA kernels")
    options = SimpleNamespace(batch=1, device="cuda")
    row = ops.measure(DEPTHWISE[-1], "conv-norm", "float32", "contiguous", options)
    assert (row.missing, row.ms) == ("no kernel for cuda", 0)


def test_rotation_takes_turns_and_keeps_results_for_one_round() -> None:
    import weakref

    from cold import Rotation

    order: list[int] = []

    def call(number: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            order.append(number)
            return torch.zeros(1)

        return run

    rotation = Rotation([call(0), call(1), call(2)])
    results = [weakref.ref(rotation()) for _ in range(4)]
    assert order == [0, 1, 2, 0]
    assert [result() is not None for result in results] == [False, True, True, True]


def test_sets_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from cold import sets_needed

    properties = SimpleNamespace(L2_cache_size=50_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert sets_needed(1_000_000_000, "cuda") == 2
    assert sets_needed(51_000_000, "cuda") == 3
    assert sets_needed(1_000_000, "cuda:1") == 101
    assert sets_needed(1_000_000, "cpu") == 1


def test_event_clock_times_the_calls_and_not_the_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    from cold import QUEUED_CALLS, event_clock

    log: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = log.count("call")
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 0.25 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    calls = QUEUED_CALLS + 2
    assert event_clock(lambda: log.append("call"), calls) == 0.25
    assert log.count("call") == calls
    assert log[:4] == ["wait", "sleep", "record", "call"]
    assert log[-6:] == ["sleep", "record", "call", "call", "record", "wait"]


def test_what_the_sanitizer_watches_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_small

    assert gpu_small.main(["--device", "cpu"]) == 0
    assert capsys.readouterr().out == "264 calls of 9 ops on cpu\n"
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    ours = {name.split("::")[1] for name in registered if name.startswith("mobilenet_ext::")}
    convs = {f"{kind}_conv{way}" for kind in ("pointwise", "image") for way in ("", "_backward")}
    cpu_only = convs | {"mobilenet"}
    of_others = {"separable_convs", "separable_convs_backward"}  # and products of the library
    assert {case.op for case in gpu_small.CASES.values()} == ours - cpu_only - of_others


def fake_capture(run: Callable[[], object]) -> tuple[Callable[[], None], Tensor]:
    """What graphs.capture does, without a GPU: warm-ups, and a replay that reuses its result."""
    for _ in range(3):
        run()
    kept = run()
    assert isinstance(kept, Tensor)
    result = kept.detach()

    def replay() -> None:
        again = run()
        assert isinstance(again, Tensor)
        with torch.inference_mode(result.is_inference()):
            result.copy_(again.detach())

    return replay, result


@pytest.mark.parametrize("name", ["eager_graph", "mobilenet_ext.graph"])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_graphs_are_verified_from_the_weights_of_the_problem(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contenders
    import graphs
    from points import Point
    from problem import make_problem

    problem = make_problem(Point(mode, 0.25, 32, 8, 1, num_classes=10))
    table = contenders.TRAINING if mode == "training" else contenders.INFERENCE
    with pytest.raises(contenders.NotAvailable, match="need a GPU"):
        table[name](problem)
    monkeypatch.setattr(graphs, "needs_gpu", lambda problem: None)
    monkeypatch.setattr(graphs, "capture", fake_capture)

    def freeze(model: FusedMobileNet, *, cuda_graph: bool) -> FrozenMobileNet:
        assert cuda_graph
        return FrozenMobileNet(model)

    monkeypatch.setattr(FusedMobileNet, "freeze", freeze)
    contender = table[name](problem)
    contender.run()
    assert problem.disagreements(contender.check()) == []


def test_float16_training_scales_its_loss_and_the_gradients_come_out_right() -> None:
    import contenders
    from points import Point
    from problem import make_problem

    problem = make_problem(Point("training", 0.25, 32, 8, 1, "float16", num_classes=10))
    assert problem.loss_scale == 1024
    contender = contenders.TRAINING["eager_channels_last"](problem)
    values = contender.check()
    assert problem.disagreements(values) == []
    wrong = {name: v * 1024 if name.startswith("grad ") else v for name, v in values.items()}
    assert problem.disagreements(wrong)


def test_our_model_does_not_compete_where_it_would_run_stock_ops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import contenders
    from points import Point
    from problem import make_problem

    problem = make_problem(Point("inference", 0.25, 32, 1, 1, num_classes=10))
    monkeypatch.setattr(contenders, "has_kernels", lambda device: False)
    for name in ("mobilenet_ext", "mobilenet_ext.freeze"):
        with pytest.raises(contenders.NotAvailable, match="not every op has a kernel"):
            contenders.INFERENCE[name](problem)
