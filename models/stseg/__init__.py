"""The STSeg network."""
