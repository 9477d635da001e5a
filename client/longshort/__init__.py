"""The client of longshort: recurrent models that remember, over gRPC."""
