"""Where base models come from: the hub, folders, GGUF files, registry packages. Each puts files into a given folder."""
