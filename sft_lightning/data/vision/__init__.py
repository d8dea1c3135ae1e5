"""Images: reading, decoding, views, and the image data module."""
