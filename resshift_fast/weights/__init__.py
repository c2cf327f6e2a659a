"""Files of weights: what is published, downloading, reading; and the embedded model's."""
