"""What makes a function a stage."""
