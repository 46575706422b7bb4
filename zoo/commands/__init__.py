"""The `zoo` command, one small module a group of subcommands; each is imported when it is called."""
