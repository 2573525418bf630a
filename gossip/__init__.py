"""What peers say to each other: wire messages, links, directory, routing and delivery."""
