"""Moving messages between gRPC and the core, one module a gRPC service. Knows no numbers and no policies."""
