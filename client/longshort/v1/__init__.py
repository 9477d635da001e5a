"""The generated stubs of longshort.v1."""
