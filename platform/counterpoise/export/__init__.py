"""Views on their way out: images, labels and how they came to be, in the forms that other tools read."""
