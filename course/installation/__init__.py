"""Everything that runs before the packages are there: standard library only."""
