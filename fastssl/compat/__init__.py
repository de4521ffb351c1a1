"""The signatures and conventions of other libraries, one module each."""
