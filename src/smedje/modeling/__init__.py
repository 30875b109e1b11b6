"""Base models and the network: catalog, sources, decoder, adapters. Knows nothing of chat, data or HTTP."""
