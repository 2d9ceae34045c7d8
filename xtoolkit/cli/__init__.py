"""The commands: what `tools/*.py` and `xtoolkit ...` do; the only room that knows every other."""
