"""How fast DAFNet is here, beside the authors' released code where its path is given."""
