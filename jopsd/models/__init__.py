"""The decoder, its adapters and its weights. Knows nothing of losses, methods or training."""
