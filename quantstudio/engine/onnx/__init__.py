"""A second engine for CPUs: quantized models of the Llama family as one graph that ONNX Runtime carries out."""
