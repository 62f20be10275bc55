"""One process's part in a job: its session, its saves, and the state it holds."""
