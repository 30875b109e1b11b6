"""Start a command somewhere, watch it, stop it; knows nothing of training."""
