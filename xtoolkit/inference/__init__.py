"""A trained model that answers: ``xtoolkit.load`` and what it returns."""
