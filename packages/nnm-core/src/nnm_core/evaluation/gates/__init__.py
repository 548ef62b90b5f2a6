"""Gates: end-to-end tests of the whole path against reading, with controls; one gate a module."""
