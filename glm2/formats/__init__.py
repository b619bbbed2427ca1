"""Files of weights, one tensor at a time: MindSpore's .ckpt, safetensors, and PyTorch's.

Each module finds the tensors of its kind of file without reading them; two also write. Peak
memory is a few blocks, whatever the size of a tensor. Needs neither MindSpore nor PyTorch.
"""
