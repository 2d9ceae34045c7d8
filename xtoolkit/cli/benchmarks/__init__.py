"""The benchmarks of `xtoolkit benchmark`, one file each."""
