"""What tests of every room of the server share lies here: `served`, `redis_server`. Pytest finds them by this file's folder."""
