"""What judges an image."""
