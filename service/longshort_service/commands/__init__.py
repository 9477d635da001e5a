"""The commands of `longshort`, a module each. What a command runs is imported when it is called."""
