"""What `sweep` does: study.py opens a study, worker.py works on it, results.py shows it."""
