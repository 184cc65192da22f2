"""Cloud TPU and GKE: slices, jobs, and what runs on a worker."""
