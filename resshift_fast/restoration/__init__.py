"""From pixels to pixels: the model as one module, its sampler, CUDA graphs, and kernels compiled ahead of time."""
