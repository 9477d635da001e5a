"""The loads: stream_load in C++, and the gateway client as its own users run it."""
