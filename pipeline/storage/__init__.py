"""Writing shards: byte-stable, resumable, to a local folder or an object store."""
