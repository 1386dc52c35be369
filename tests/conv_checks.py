"""Runs a convolution op and compares all that it returns with the float64 oracle."""

import oracle
import torch
from cases import ConvCase, vector_dtype
from implementations import Ops
from oracle import assert_totals, assert_values
from samples import BackwardSample, forward_arguments, make_backward_sample, make_map
from torch import Tensor

NOTHING = "nothing"


def magnitude(z: Tensor, weight: Tensor, case: ConvCase) -> float:
    """The largest sum of magnitudes that an output element is made of."""
    raw = oracle.convolution(z.abs(), weight.abs(), case)
    return raw.max().item() if raw.numel() else 0.0


def assert_statistics(output: Tensor, mean: Tensor, var: Tensor) -> None:
    """`mean` and `var` must be those of `output` as it is stored."""
    if not output.numel():
        assert mean.isnan().all()
        assert var.isnan().all()
        assert mean.shape == var.shape == output.shape[1:2]
        return
    stored, dtype = output.double(), vector_dtype(output.dtype)
    spread = stored.abs().max().item()
    assert_values(mean, stored.mean((0, 2, 3)), dtype, scale=spread)
    expected = stored.var((0, 2, 3), correction=0)
    assert_values(var, expected, dtype, scale=spread**2)


def check_forward(
    ops: Ops, case: ConvCase, dtype: torch.dtype, *, prologue: str | None, epilogue: str | None
) -> None:
    """Compares values and, where there is no epilogue, statistics with the oracle's.

    Prologue and epilogue are activations behind a BatchNorm, or `NOTHING`.
    """
    before = None if prologue is NOTHING else make_map(case.channels, dtype, prologue)
    after = None if epilogue is NOTHING else make_map(case.channels_after, dtype, epilogue)
    arguments = forward_arguments(
        case, dtype, prologue=before, epilogue=after, statistics=after is None
    )
    output, mean, var = getattr(ops, case.op)(**arguments)
    x, weight = arguments["input"], arguments["weight"]
    z = before(x) if before else x.double()
    raw = oracle.convolution(z, weight, case)
    scale = magnitude(before.magnitude(x) if before else z, weight.double(), case)
    if after:
        assert_values(output, after(raw), dtype, scale=4 * scale + 3)
        assert mean.shape == var.shape == (0,)
        assert mean.dtype == var.dtype == vector_dtype(dtype)
    else:
        assert_values(output, raw, dtype, scale=scale)
        assert_statistics(output, mean, var)


def check_backward(ops: Ops, sample: BackwardSample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs the op and compares all it was asked for with the oracle; returns its results."""
    results = getattr(ops, f"{sample.case.op}_backward")(**sample.arguments)
    expected, magnitudes = sample.expected(), sample.expected(magnitude=True)
    dtype, vectors = sample.dtype, vector_dtype(sample.dtype)
    if sample.arguments["need_grad_input"]:
        scale = magnitudes[0].max().item() if magnitudes[0].numel() else 0.0
        assert_values(results[0], expected[0], dtype, scale=scale)
    if sample.arguments["need_grad_weight"]:
        assert_totals(results[1], expected[1], magnitudes[1], dtype)
    rounded = dtype if dtype != vectors else None
    assert_totals(results[2], expected[2], magnitudes[2], vectors, terms=rounded)
    assert_totals(results[3], expected[3], magnitudes[3], vectors, terms=rounded)
    return results


def check_parts(ops: Ops, case: ConvCase, options: dict[str, bool]) -> None:
    sample = make_backward_sample(case, **options)
    results = check_backward(ops, sample)
    asked = (
        sample.arguments["need_grad_input"],
        sample.arguments["need_grad_weight"],
        sample.arguments["input_mean"] is not None,
        sample.arguments["input_mean"] is not None,
    )
    for result, wanted in zip(results, asked, strict=True):
        assert wanted or result.shape == (0,)
