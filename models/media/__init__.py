"""Files of images and recordings, decoded to the arrays that networks learn from."""
