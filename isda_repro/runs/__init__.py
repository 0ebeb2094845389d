"""Files that a run leaves on disk, and how to read them: records, directory, lock, exit status, result index."""
