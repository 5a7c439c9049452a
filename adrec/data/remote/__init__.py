"""Files elsewhere: object stores and web servers, read through a mirror and published to."""
