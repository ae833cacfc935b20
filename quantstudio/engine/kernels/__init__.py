"""How a quantized weight is multiplied: one plain `nn.Module` per operator, and the registry that chooses.

Every kernel takes a `QuantizedWeight` and a bias and behaves like the `nn.Linear` of the dequantized weight, in bf16.
Plain modules, not tensor subclasses: those cost a fifth of the speed at one row, and most cannot be saved.
"""
