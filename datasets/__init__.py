"""What lies on disk: where each data set's pairs are, how its masks are coded, and what is wrong with them."""
