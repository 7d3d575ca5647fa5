"""What `prepare` and `split` need: downloads, archives, the state of each picture, copies."""
