"""What needs nothing else of this package: the cache folder, descriptions of devices, and the time of work on a GPU."""
