"""From a `study.yml` to the runs that answer it."""
