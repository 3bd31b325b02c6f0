"""The work of the commands, as jobs of independent parts (ttt_dist/jobs/runner.py runs them)."""
