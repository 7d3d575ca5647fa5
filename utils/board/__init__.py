"""The visdom server of the command `board`, and the files of its page."""
