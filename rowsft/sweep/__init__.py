"""Many jobs, one fresh process each."""
