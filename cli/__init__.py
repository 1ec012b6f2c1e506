"""cli/: the `batchyard` command, one file per verb. Imported by nobody."""
