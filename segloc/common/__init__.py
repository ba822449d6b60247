"""Code that both stages share: shard contract, files and stores, data sets, images, masks, command line. No torch."""
