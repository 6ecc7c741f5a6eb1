"""From notebooks to a book: executed chapters, what they say with numbers, claims, pages."""
