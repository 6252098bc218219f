"""The mathematics of FastDiSS: pure torch, without fairseq and without networks."""
