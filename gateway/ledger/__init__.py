"""What was asked, who asked, and what it cost: written down beside the request path, read by `chorus usage`."""
