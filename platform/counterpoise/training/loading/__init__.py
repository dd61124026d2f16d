"""Loading of training images: decoding, caching, batching, augmentation and mixing."""
