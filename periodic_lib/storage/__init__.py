"""Where runs lie: found by what they were made from; one process trains them, the others wait."""
