"""The commands of `grid`, by what they are about."""
