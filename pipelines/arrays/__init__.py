"""Operations on whole arrays: sorting, runs of equal rows, hashing, narrow integers."""
