"""The control plane: which encoders run, maintenance, and the calls that reach it."""
