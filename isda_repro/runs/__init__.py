"""What a run leaves on disk, and how it is read back: records, directory, lock, exit status, index of results."""
