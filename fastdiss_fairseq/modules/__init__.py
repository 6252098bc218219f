"""The networks: embeddings, transformer layers, the denoiser and the length predictor."""
