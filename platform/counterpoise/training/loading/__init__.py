"""Images on their way into batches: decoded, cached, augmented, mixed."""
