"""The model zoo: tables of recipes, of papers' figures and of recorded results, which pages take between two comments."""
