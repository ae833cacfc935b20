"""What `products.h` and `token.cpp` read, field by field as they declare it."""

from __future__ import annotations

import ctypes

_Pointer = ctypes.c_void_p
_Size = ctypes.c_int64


class Matrix(ctypes.Structure):
    """A weight of 4, 8 or 16 bits."""

    _fields_ = (
        ("weights", _Pointer),
        ("scales", _Pointer),
        ("bias", _Pointer),
        ("rows", _Size),
        ("columns", _Size),
        ("padded", _Size),
        ("group", _Size),
        ("block", _Size),
        ("bits", ctypes.c_int32),
        ("rounds_input", ctypes.c_int32),
    )


class Cache(ctypes.Structure):
    """Keys and values of a layer."""

    _fields_ = (
        ("keys", _Pointer),
        ("values", _Pointer),
        ("key_scales", _Pointer),
        ("value_scales", _Pointer),
        ("capacity", _Size),
        ("first", _Size),
        ("position", _Size),
    )


class Layer(ctypes.Structure):
    """Norms and matrices of a decoder layer."""

    _fields_ = (
        ("input_norm", _Pointer),
        ("inner_norm", _Pointer),
        ("query_norm", _Pointer),
        ("key_norm", _Pointer),
        ("attention", Matrix * 3),
        ("output", Matrix),
        ("mlp", Matrix * 2),
        ("down", Matrix),
    )


class Model(ctypes.Structure):
    """Everything but the embedding."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("norm", _Pointer),
        ("head", Matrix),
        ("count", _Size),
        ("hidden", _Size),
        ("inner", _Size),
        ("heads", _Size),
        ("shared", _Size),
        ("head_size", _Size),
        ("epsilon", ctypes.c_float),
        ("head_epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
    )
