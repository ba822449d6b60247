"""Scripts that measure the pipeline beside a limit or a plain peer, in one run."""
