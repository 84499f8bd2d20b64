"""Download: where a data set comes from, HTTP, archives, and one rename at the end."""
