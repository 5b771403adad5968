"""The model of the reward: an embedding of architectures, a Gaussian process on it, an acquisition.

It sees padded tensors only (graphs x layers x features), never a graph or a network. Import from
the files; nothing heavy is imported here, so that settings can be read without torch.
"""
