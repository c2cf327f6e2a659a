"""From pixels to pixels: the model as one module, its sampler, and how both are made fast."""
