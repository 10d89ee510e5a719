"""The running collector: start and stop, sampling, log threads, signals and systemd."""
