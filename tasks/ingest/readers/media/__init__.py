"""Files of images and recordings."""
