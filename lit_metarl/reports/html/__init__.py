"""One self-contained page of results: curves to explore, tables, settings, films."""
