"""The on-disk format of datasets: snapshot, shards, encodings, and readers."""
