"""Commands that train a model or pack one."""
