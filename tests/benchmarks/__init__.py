"""What the collector costs and how fast it is, as ratios to something else that is measured in the same run."""
