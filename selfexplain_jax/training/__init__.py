"""Training: state, optimizer, the step, the mesh, checkpoints, writers and the loop."""
