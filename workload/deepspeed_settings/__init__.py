"""DeepSpeed configurations: the checks of a user's file, and the settings that our flags add to it."""
