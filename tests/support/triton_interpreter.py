"""Triton's interpreter as a GPU would compute: import this, in a process with TRITON_INTERPRET=1, before any kernel.

Left alone, the interpreter multiplies bfloat16 as integers, truncates where a GPU rounds, computes tf32 in full, gives
0 for lanes that a GPU leaves undefined, and lets a kernel read beyond its tensors. Repaired here, for 3.6 to 3.9:

    bfloat16   products, arithmetic and casts, rounded to nearest even
    tf32       the inputs of a product are rounded
    loads      undefined lanes are NaN; every active lane must lie in a tensor that was given to the launch
    loops      bounds that were loaded (fails in 3.6 with a recent numpy)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

assert os.environ.get("TRITON_INTERPRET") == "1", "it has to be set before triton is imported"

_Builder = type(interpreter.interpreter_builder)
_Handle = interpreter.TensorHandle
_BF16_NAN = np.uint16(0x7FC0)
_SMALLEST_PRODUCT = 16
_FLOATS = (tl.float32, tl.float16, tl.bfloat16)

extents: list[tuple[int, int]] = []
"""First and last address of the tensors of the launch that runs."""


def _read_bf16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round_bf16(values: Any) -> Any:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, _BF16_NAN, rounded).astype(np.uint16).reshape(np.shape(values))


def _round_tf32(values: Any) -> Any:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


def _multiply(self: Any, a: Any, b: Any, d: Any, input_precision: Any, _imprecise: Any) -> Any:
    left, right = a.data, b.data
    if left.shape[-1] < _SMALLEST_PRODUCT:
        raise ValueError(f"tl.dot over {left.shape[-1]} < {_SMALLEST_PRODUCT} terms does not compile for NVIDIA GPUs")
    if a.dtype.scalar == tl.bfloat16:
        left, right = _read_bf16(left), _read_bf16(right)
    elif a.dtype.scalar == tl.float32 and str(input_precision).rsplit(".", maxsplit=1)[-1] == "TF32":
        left, right = _round_tf32(left), _round_tf32(right)
    return _Handle(np.matmul(left, right, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def _repair_cast(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: Any, source: Any, target: Any) -> Any:
        from_bf16, to_bf16 = source.dtype.scalar == tl.bfloat16, target.scalar == tl.bfloat16
        if from_bf16 and to_bf16:
            return source
        if from_bf16:
            return original(self, _Handle(_read_bf16(source.data), tl.float32), target)
        if to_bf16:
            return _Handle(_round_bf16(source.data.astype(np.float32)), tl.bfloat16)
        return original(self, source, target)

    return cast


def _repair_arithmetic(original: Callable[..., Any]) -> Callable[..., Any]:
    def calculate(self: Any, *arguments: Any) -> Any:
        *operands, operation = arguments
        if operands[0].dtype.scalar != tl.bfloat16:
            return original(self, *arguments)
        result = operation(*(_read_bf16(operand.data) for operand in operands))
        if result.dtype == np.bool_:
            return _Handle(result, tl.int1)
        return _Handle(_round_bf16(result), tl.bfloat16)

    return calculate


def _repair_loops(original: Callable[..., Any]) -> Callable[..., Any]:
    def patch(tensor: Any, *arguments: Any) -> Any:
        result = original(tensor, *arguments)
        tensor.__index__ = lambda self: int(np.asarray(self.handle.data).reshape(-1)[0])
        return result

    return patch


def _note_tensors(original: Callable[..., Any]) -> Callable[..., Any]:
    def prepare(self: Any, arguments: Any, keywords: Any) -> Any:
        prepared = original(self, arguments, keywords)
        extents[:] = [
            _measure(tensor)
            for tensor in [*prepared[0], *prepared[1].values()]
            if isinstance(tensor, torch.Tensor) and tensor.numel()
        ]
        return prepared

    return prepare


def _measure(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _check(pointers: Any, mask: Any, what: str) -> None:
    active = np.broadcast_to(mask.data, pointers.data.shape)
    addresses = pointers.data[active].astype(np.uint64)
    if not addresses.size:
        return
    size = np.uint64(max(pointers.get_element_ty().primitive_bitwidth // 8, 1))
    inside = np.zeros(addresses.shape, bool)
    for first, last in extents:
        inside |= (addresses >= np.uint64(first)) & (addresses + size <= np.uint64(last))
    if not inside.all():
        raise IndexError(f"{what} out of bounds: {int((~inside).sum())} of {inside.size} active lanes")


def _check_load(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **keywords: Any) -> Any:
        _check(pointers, mask, "load")
        element = pointers.get_element_ty()
        if other is None and element in _FLOATS:
            undefined = _BF16_NAN if element == tl.bfloat16 else np.nan
            dtype = np.uint16 if element == tl.bfloat16 else np.float16 if element == tl.float16 else np.float32
            other = _Handle(np.full(pointers.data.shape, undefined, dtype=dtype), element)
        return original(self, pointers, mask, other, *rest, **keywords)

    return load


def _check_store(original: Callable[..., Any]) -> Callable[..., Any]:
    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
        _check(pointers, mask, "store")
        return original(self, pointers, value, mask, *rest, **keywords)

    return store


_Builder.create_dot = _multiply
_Builder.cast_impl = _repair_cast(_Builder.cast_impl)
_Builder.binary_op = _repair_arithmetic(_Builder.binary_op)
_Builder.unary_op = _repair_arithmetic(_Builder.unary_op)
_Builder.create_masked_load = _check_load(_Builder.create_masked_load)
_Builder.create_masked_store = _check_store(_Builder.create_masked_store)
interpreter._patch_lang_tensor = _repair_loops(interpreter._patch_lang_tensor)
interpreter.GridExecutor._init_args_hst = _note_tensors(interpreter.GridExecutor._init_args_hst)
