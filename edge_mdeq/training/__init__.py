"""Training on a workstation: recipe in, weights and metrics out. Needs the extra ``train``."""
