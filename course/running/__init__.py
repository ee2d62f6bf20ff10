"""The test command, kernels, comparison, budgets and the ledger."""
