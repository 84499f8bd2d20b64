"""What can be wrong, one function a check: inputs -> Finding."""
