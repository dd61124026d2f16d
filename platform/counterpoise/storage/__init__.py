"""Object stores with atomic creation, tables of images, and views on them."""
