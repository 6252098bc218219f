"""Console commands around training and decoding: score, sweep, ablate, export."""
