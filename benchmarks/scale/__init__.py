"""1 to 10,000 workers in virtual time: real code of commits, restores and messages and a modelled storage."""
