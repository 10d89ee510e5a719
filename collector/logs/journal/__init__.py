"""The journal of systemd as a log: journalctl, its entries, and the reader."""
