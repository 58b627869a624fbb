"""Worker processes: their messages, the client that the HTTP process holds, and the supervisor that restarts them."""
