"""The page to try a model: a small web server for the machine that it runs on."""
