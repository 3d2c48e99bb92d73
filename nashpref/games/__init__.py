"""Games: a preference matrix, the zoo of named ones, and matrices estimated from data."""
