"""What the pages of the book are made of: tables, figures, cards, and the running of notebooks."""
