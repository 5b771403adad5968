"""What a run shows: tables, progress, TensorBoard scalars. It reads journals alone."""
