"""Code that the commands of stage 1 share: executors, seeds, contact sheets, manifests."""
