"""Thin tasks: each looks up or builds one artifact by calling `storage`, `kernels` and `fortifai_core`."""
