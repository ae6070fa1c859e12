"""How processes come about and find each other: the launcher that started us, or ours."""
