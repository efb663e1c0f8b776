"""Whole slides: from tiles that are streamed through the network to files, figures and a viewer."""
