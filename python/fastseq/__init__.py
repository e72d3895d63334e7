"""stub for build."""
