"""Finding memories: search over the index, fusion, re-ranking on stored states, leases."""
