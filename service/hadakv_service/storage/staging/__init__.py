"""Sessions that arrive page by page and become visible all at once."""
