"""What stands before any work: connections, hosts, keys, rates, the log line of every request."""
