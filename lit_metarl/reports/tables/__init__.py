"""Tables of the runs in the tracking store."""
