"""What belongs to this machine: addresses, listening sockets, and the process of a server."""
