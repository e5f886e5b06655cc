"""What the sandbox needs: tiers, worker processes, control groups, a remote grader."""
