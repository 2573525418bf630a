"""What do peers share that lasts? Signed entries in namespaces, merged alike everywhere."""
