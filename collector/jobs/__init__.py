"""What runs on a timer beside the sampling."""
