"""longshort's service: keeps recurrent models' memories and runs them together. Never imports torch."""
