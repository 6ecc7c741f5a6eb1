"""Many runs over many processes: stacks as tasks, schedulers, what is done and what it takes."""
