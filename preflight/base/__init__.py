"""What every room may use: errors, configuration, stop requests, log and console."""
