"""The losses that ship with the toolkit; importing this package registers them."""
