"""Models of small images: VAE and diffusion, their data, clipping, measures and figures."""
