"""Where sessions are kept when no row holds them: the contract of a store, and the stores."""
