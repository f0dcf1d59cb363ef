"""What was applied: the two tables, and the plan that follows from them."""
