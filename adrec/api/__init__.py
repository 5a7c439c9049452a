"""The Python front door: the commands as functions, a bundle as an object, frames of any kind in and out."""
