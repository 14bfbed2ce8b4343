"""One interface over the image and text towers of several libraries."""
