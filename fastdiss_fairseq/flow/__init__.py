"""The mathematics of discrete flow matching (FS-DFM, arXiv 2509.20624): torch only, no fairseq, no networks."""
