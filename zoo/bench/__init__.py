"""Speed beside the public implementations people use today, in one process and one run."""
